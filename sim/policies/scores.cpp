// SPDX-License-Identifier: Apache-2.0
// A method that was run elsewhere: ranks entries by given scores.
// File format: traces/README.md, "Files for external methods".
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/layer_table.h"

namespace kvspan::policies {

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
  entry.parameters = {{.name = "file",
                       .kind = Kind::text,
                       .help = "safetensors with `scores` [layers, heads, tokens]"},
                      budget_parameter(),
                      {.name = "at",
                       .kind = Kind::word,
                       .fallback = "prompt_end",
                       .help = "when it evicts",
                       .choices = {"prompt_end", "every_pass"}},
                      {.name = "recent",
                       .fallback = "0",
                       .unit = "tokens",
                       .help = "newest kept whatever their score"}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Recipe recipe;
    const auto table = std::make_shared<LayerTable>(
        read_layer_table(arguments.text("file"), {"scores"}, geometry, "scores"));
    for (const auto& layer : table->layers) {
      if (!std::all_of(layer.begin(), layer.end(), [](double s) { return std::isfinite(s); })) {
        throw TraceError(fmt::format("scores: {}: a score is not finite", arguments.text("file")));
      }
    }
    const bool every_pass = arguments.is("at", "every_pass");
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
