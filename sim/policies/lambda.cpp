// SPDX-License-Identifier: Apache-2.0
// Lambda: StreamingLLM's set under the original positions, as LM-Infinite keeps it (Han et al.,
// arXiv 2308.16137) and LESS compares with (arXiv 2402.09398). LM-Infinite also clips distances
// beyond the trained length; that is not modelled.
#include <algorithm>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

PolicyEntry lambda() {
  PolicyEntry entry;
  entry.name = "lambda";
  entry.kind = MethodKind::eviction;
  entry.summary = "attention sinks and a recent window under the original positions, by budget";
  entry.source = "Han et al. 2023, arXiv 2308.16137";
  entry.evidence = "secondary";
  entry.differs = "LM-Infinite also clips distances; the logged scores are taken as they are";
  entry.needs = "nothing";
  entry.parameters = {budget_parameter(),
                      {.name = "sinks",
                       .fallback = "4",
                       .unit = "tokens",
                       .help = "first tokens, inside the budget"}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Recipe recipe =
        budgeted(arguments, geometry, own(position_scoring()), own(Schedule::every_pass()));
    recipe.protect = own(ProtectRule([sinks = arguments.count("sinks")](TokenCount budget) {
      const TokenCount first = std::min(sinks, budget);
      return Protect{first, budget - first};
    }));
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
