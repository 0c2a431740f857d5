// SPDX-License-Identifier: Apache-2.0
// H2O: the heaviest hitters by accumulated attention, and the newest tokens; after the prompt and
// after every decode row. The sum runs over all rows so far, prompt rows included, under the policy's
// own cache, and over the query heads of the group.
// Source: Zhang et al., arXiv 2306.14048; code FMInference/H2O (`real_drop`; its other two variants
// take ratios of the prompt, or leak future queries). The paper is for MHA; GQA sums the group.
#include <fmt/format.h>

#include "sim/error.h"
#include "sim/policies/helpers.h"

namespace kvspan::policies {
PolicyEntry h2o() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "h2o";
  entry.klass = "eviction";
  entry.summary = "heavy hitters by accumulated attention plus the newest tokens, in decode too";
  entry.source = "Zhang et al. 2023, arXiv 2306.14048";
  entry.evidence = "code read (real_drop)";
  entry.needs =
      "q and k, or probabilities of all rows (or column_mass of the prompt and all decode rows)";
  entry.parameters = {
      {"heavy",
       Kind::count,
       "auto",
       "tokens",
       "heavy hitters kept; auto: budget / 2",
       {},
       0,
       1e12,
       true},
      {"recent",
       Kind::count,
       "auto",
       "tokens",
       "newest kept; auto: the rest of the budget",
       {},
       0,
       1e12,
       true},
      budget_parameter(),
      {"group", Kind::word, "sum", "", "none: one set per query head", {"sum", "none"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Recipe recipe;
    Scoring scoring = column_sum_scoring();
    scoring.per_query_head = arguments.is("group", "none");
    recipe.scorer = own(scoring);
    recipe.schedule = own(Schedule::prompt_end_and_decode());
    recipe.charge.entry = 4;  // one fp32 sum per entry of a stored head
    recipe.knob = budget_knob(geometry);
    if (arguments.given("heavy") || arguments.given("recent")) {
      if (arguments.given("budget"))
        throw ConfigError("h2o: give either budget, or heavy and recent");
      if (!arguments.given("heavy") || !arguments.given("recent")) {
        throw ConfigError(
            "h2o: heavy and recent go together; for an even split give budget instead");
      }
      arguments.set("budget", "auto");
      const TokenCount heavy = arguments.count("heavy");
      const TokenCount recent = arguments.count("recent");
      if (heavy + recent < 1) throw ConfigError("h2o: heavy + recent must be at least 1");
      recipe.size = own(Amount{Amount::Kind::tokens, heavy + recent, 0, ""});
      recipe.protect = own(protect_recent(recent));
    } else {
      recipe.size = size_of(arguments);
      recipe.protect = own(ProtectRule([](TokenCount budget) {
        return Protect{0, budget - budget / 2};
      }));
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
