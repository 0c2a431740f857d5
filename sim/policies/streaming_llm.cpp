// SPDX-License-Identifier: Apache-2.0
// StreamingLLM: the first `sinks` tokens and the newest `window` tokens, after every pass.
// Source: Xiao et al., arXiv 2309.17453; code mit-han-lab/streaming-llm. The authors number
// positions by place in the cache (positions=cache); that changes outputs but no lifetime, so the
// default keeps the trace's own. Their long-perplexity script evicts after every row, as here: a
// row reads sinks + window and itself. Only the chat demo makes room before a turn.
#include <algorithm>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

PolicyEntry streaming_llm() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "streaming_llm";
  entry.kind = MethodKind::recency_eviction;
  entry.summary = "attention sinks and a recent window, after every pass";
  entry.source = "Xiao et al. 2023, arXiv 2309.17453";
  entry.evidence = "code read";
  entry.differs =
      "the authors number positions by cache slot (positions=cache; default original, deaths are "
      "equal); their script evicts after every row, as here, their chat demo before a turn";
  entry.needs = "nothing; positions=cache: the rope_* fields";
  entry.parameters = {
      {.name = "sinks",
       .fallback = "4",
       .unit = "tokens",
       .help = "first tokens, always kept",
       .sizes = true},
      {.name = "window",
       .fallback = "1020",
       .unit = "tokens",
       .help = "newest tokens kept",
       .sizes = true},
      budget_parameter("auto", "sets sinks = min(4, budget) and window = budget - sinks"),
      {.name = "positions",
       .kind = Kind::word,
       .fallback = "original",
       .help = "original: the trace's; cache: places in the cache, as in the authors' code",
       .choices = {"original", "cache"}}};
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

}  // namespace kvspan::policies
