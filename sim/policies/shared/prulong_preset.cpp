// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/prulong_preset.h"

namespace kvspan::policies {
namespace {

constexpr TokenCount kStep = 64;

bool wanted(const Arguments& arguments) { return arguments.is("preset", "prulong"); }

}  // namespace

Parameter preset_parameter() {
  return {.name = "preset",
          .kind = Parameter::Kind::word,
          .fallback = "none",
          .help = "prulong: the settings of arXiv 2506.17121's baselines, where not given",
          .choices = {"none", "prulong"}};
}

void apply_preset(Arguments& arguments) {
  if (!wanted(arguments)) return;
  for (const auto& [name, value] :
       {std::pair("window", "64"), std::pair("kernel", "5"), std::pair("pool", "avg"),
        std::pair("group", "none"), std::pair("order", "pool_then_group")}) {
    if (!arguments.given(name)) arguments.set(name, value);
  }
}

void finish_preset(const Arguments& arguments, const Geometry& geometry, Recipe& recipe) {
  if (!wanted(arguments)) return;
  recipe.early = last_row_decodes(geometry);
  recipe.capacity_step = kStep;
}

}  // namespace kvspan::policies
