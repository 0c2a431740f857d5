// SPDX-License-Identifier: Apache-2.0
// A method that was run elsewhere: ranks entries by given scores.
// File format: traces/README.md, "Files for external methods".
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/layer_table.h"

namespace kvspan::policies {
namespace {

// -inf, "never keep", ranks below every number, and stays so in sums and products of wrappers.
constexpr double kNever = -3.4e38;

void make_finite(LayerTable& table, const std::string& file) {
  for (std::size_t l = 0; l < table.layers.size(); ++l) {
    for (std::size_t i = 0; i < table.layers[l].size(); ++i) {
      double& score = table.layers[l][i];
      if (score == -std::numeric_limits<double>::infinity()) score = kNever;
      if (std::isfinite(score)) continue;
      throw TraceError(
          fmt::format("scores: {}: {} has the score {}, expected a number, or -inf "
                      "for what is never kept",
                      file, table.place(l, i), score));
    }
  }
}

}  // namespace

PolicyEntry scores() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "scores";
  entry.kind = MethodKind::external;
  entry.summary = "ranks entries by scores from a file (an external method)";
  entry.source = "file of the user";
  entry.evidence = "definition";
  entry.needs = "nothing";
  entry.needs_file = true;
  entry.parameters = {
      {.name = "file",
       .kind = Kind::text,
       .unit = "file",
       .help = "safetensors with `scores` [layers, heads, tokens]; the prompt's tokens "
               "are enough for at=prompt_end"},
      budget_parameter(),
      {.name = "at",
       .kind = Kind::word,
       .fallback = "prompt_end",
       .help = "when it evicts",
       .choices = {"prompt_end", "every_pass"}},
      {.name = "recent",
       .fallback = "0",
       .unit = "tokens",
       .help = "newest kept whatever their score"},
      own_name_parameter()};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Recipe recipe;
    check_own_name(arguments);
    const bool every_pass = arguments.is("at", "every_pass");
    const std::string& file = arguments.text("file");
    const auto table = std::make_shared<LayerTable>(read_layer_table(
        file, {"scores"}, geometry, "scores", every_pass ? TokensOf::trace : TokensOf::prompt));
    make_finite(*table, file);
    Scoring scoring = table_scoring(table, geometry);
    scoring.evicts_in_decode = every_pass;
    recipe.scorer = own(scoring);
    recipe.size = size_of(arguments);
    recipe.schedule = own(every_pass ? Schedule::every_pass() : Schedule::at_evict_point());
    recipe.protect = own(protect_recent(arguments.count("recent")));
    recipe.knob = budget_knob(geometry);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
