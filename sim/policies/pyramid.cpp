// SPDX-License-Identifier: Apache-2.0
// PyramidKV's layer budgets alone, for another policy's scores: see pyramidkv.
#include "sim/policies/shared/pyramid.h"

namespace kvspan::policies {

PolicyEntry pyramid() {
  PolicyEntry entry;
  entry.name = "pyramid";
  entry.kind = MethodKind::budget_shape;
  entry.summary = "PyramidKV's layer budgets alone, for another policy's scores";
  entry.source = "Cai et al. 2024, arXiv 2406.02069";
  entry.evidence = "code read";
  entry.needs = "what the other policy needs";
  entry.alone = "it is a budget shape; combine it, as in pyramid+snapkv(budget=512)";
  entry.parameters = pyramid_parameters();
  entry.parameters.push_back({.name = "window",
                              .fallback = "8",
                              .unit = "tokens",
                              .help = "reserved in every layer",
                              .range = {0, 1e6}});
  entry.make = [](Arguments& arguments, const Geometry&) {
    Recipe recipe;
    recipe.shape = pyramid_shape(arguments, arguments.count("window"), std::nullopt);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
