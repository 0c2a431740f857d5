// SPDX-License-Identifier: Apache-2.0
// StreamingLLM: the first `sinks` tokens and the newest `window` tokens, after every pass.
// Source: Xiao et al., arXiv 2309.17453; code mit-han-lab/streaming-llm. The authors number positions
// by place in the cache (positions=cache); that changes outputs but no lifetime, so the default keeps
// the trace's own. Their code evicts before it adds, so a row of theirs reads sinks + window entries,
// here one more: attend, then evict.
//
// Lambda: the same set under the original positions, as LM-Infinite keeps it (Han et al., arXiv
// 2308.16137) and LESS compares with (arXiv 2402.09398). LM-Infinite also clips distances beyond the
// trained length; that is not modelled.
#include <algorithm>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

PolicyEntry streaming_llm() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "streaming_llm";
  entry.klass = "recency eviction";
  entry.summary = "attention sinks and a recent window, after every pass";
  entry.source = "Xiao et al. 2023, arXiv 2309.17453";
  entry.evidence = "code read";
  entry.differs =
      "the authors number positions by cache slot (positions=cache; default original, "
      "deaths are equal) and evict before adding, here a row is added first";
  entry.needs = "nothing; positions=cache: the rope_* fields";
  entry.parameters = {
      {"sinks", Kind::count, "4", "tokens", "first tokens, always kept", {}, 0, 1e12, true},
      {"window", Kind::count, "1020", "tokens", "newest tokens kept", {}, 0, 1e12, true},
      budget_parameter("auto"),
      {"positions",
       Kind::word,
       "original",
       "",
       "original: the trace's; cache: places in the cache, as in the authors' code",
       {"original", "cache"}}};
  entry.parameters[2].help = "sets sinks = min(4, budget) and window = budget - sinks";
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const bool by_budget = arguments.given("budget");
    if (by_budget && (arguments.given("sinks") || arguments.given("window"))) {
      throw ConfigError(
          "streaming_llm: budget sets sinks and window; give either budget, or sinks and window");
    }
    Recipe recipe;
    recipe.scorer = own(position_scoring());
    recipe.schedule = own(Schedule::every_pass());
    recipe.knob = budget_knob(geometry);
    recipe.renumbers = arguments.is("positions", "cache");
    if (by_budget) {
      arguments.set("sinks", "auto");
      arguments.set("window", "auto");
      recipe.size = size_of(arguments);
      recipe.protect = own(ProtectRule([](TokenCount budget) {
        const TokenCount sinks = std::min<TokenCount>(4, budget);
        return Protect{sinks, budget - sinks};
      }));
      return recipe;
    }
    const Protect protect{arguments.count("sinks"), arguments.count("window")};
    if (protect.sinks + protect.recent < 1)
      throw ConfigError("streaming_llm: sinks + window must be at least 1");
    recipe.size = own(Amount{Amount::Kind::tokens, protect.sinks + protect.recent, 0, ""});
    recipe.protect = own(ProtectRule([protect](TokenCount) { return protect; }));
    return recipe;
  };
  return entry;
}

PolicyEntry lambda() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "lambda";
  entry.klass = "eviction";
  entry.summary = "attention sinks and a recent window under the original positions, by budget";
  entry.source = "Han et al. 2023, arXiv 2308.16137";
  entry.evidence = "secondary";
  entry.differs = "LM-Infinite also clips distances; the logged scores are taken as they are";
  entry.needs = "nothing";
  entry.parameters = {
      budget_parameter(),
      {"sinks", Kind::count, "4", "tokens", "first tokens, inside the budget", {}, 0, 1e12}};
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
