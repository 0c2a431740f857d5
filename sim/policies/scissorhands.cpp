// SPDX-License-Identifier: Apache-2.0
// Scissorhands: entries that were seldom attended to of late will stay unimportant ("persistence of
// importance"). Evicts in batches: nothing while a head holds at most its budget B, then
// down to B - m at once, m = floor(drop * B), so that holdings run in a saw-tooth up to B.
//   low vote  a row that has t entries gives one to every entry with p' < 1/t
//   score     minus the low votes of the last `window` rows, summed over the query heads of the
//             group
// The newest `recent` entries stay (the paper's pseudocode inverts this line; its comment is
// followed).
// Source: Liu et al., arXiv 2305.17118, algorithm 2; code lzcemma/Scissorhands. The paper is for
// MHA. t is the number of entries up to the row in this head's own cache; where a selector lets the
// row read fewer, those that it does not read have p' = 0. The paper gives later layers more of the
// budget and does not publish the curve: here all layers get the same.
//
// mode=eval_code is the rule of the released evaluation code, which is another one: model layers 5
// to 35 only, row by row from position 100 on, in the prompt, too (passes end there), without a
// budget: an entry stays while one of the last 100 rows gave it more than that row's line, or while
// it is among the newest 10. "Or" runs over the query heads of the group too. A row's line is at
// place floor(.9 T) of its sorted row, T being the length of the whole pass and later tokens zero:
// so fewer than T / 10 entries pass, rows shorter than that let everybody pass, and a longer trace
// keeps more. Votes are of what a row read of its own cache, lines are of the full cache.
#include <algorithm>
#include <cmath>

#include "sim/base/error.h"
#include "sim/policies/scissorhands_rule.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

constexpr RowIndex kRows = HighVotes::kRows;
constexpr TokenCount kNewest = 10;

// B while a head holds no more, then B less the batch.
class SawTooth final : public Budget {
 public:
  explicit SawTooth(double drop) : drop_(drop) {}
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    if (sizing.tokens == kAll || sizing.rows <= sizing.tokens) return kAll;
    const auto batch = static_cast<TokenCount>(
        std::floor(drop_ / 100 * static_cast<double>(sizing.tokens) + 1e-9));
    return std::max<TokenCount>(1, sizing.tokens - batch);
  }

 private:
  double drop_;
};

}  // namespace

PolicyEntry scissorhands() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "scissorhands";
  entry.kind = MethodKind::eviction;
  entry.summary = "drops half of a full cache at once: what recent rows attended to least often";
  entry.source = "Liu et al. 2023, arXiv 2305.17118";
  entry.evidence = "secondary (paper); code read (eval_code)";
  entry.differs =
      "the released evaluation code is another rule than the paper's (mode=eval_code): no budget, "
      "and its line depends on the length of the whole pass; the paper's curve over layers is "
      "unpublished, every layer has the same budget";
  entry.needs = "q and k, or probabilities of all rows";
  entry.parameters = {
      budget_parameter(),
      {.name = "window",
       .fallback = "400",
       .unit = "rows",
       .help = "rows whose low votes count",
       .range = {1, 1e6}},
      {.name = "recent",
       .fallback = "10",
       .unit = "tokens",
       .help = "newest, never dropped",
       .range = {0, 1e6}},
      {.name = "drop",
       .kind = Kind::real,
       .fallback = "50",
       .unit = "% of the budget",
       .help = "dropped at once when it is full",
       .range = {0, 100}},
      {.name = "mode",
       .kind = Kind::word,
       .fallback = "paper",
       .help = "paper: the algorithm; eval_code: the released code's rule, without a budget",
       .choices = {"paper", "eval_code"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Recipe recipe;
    Scoring scoring;
    scoring.evicts_in_decode = true;
    recipe.schedule = own(Schedule::from_evict_point());
    recipe.charge.entry = 2;  // a counter
    if (arguments.is("mode", "eval_code")) {
      for (const char* name : {"window", "recent", "drop"}) {
        if (arguments.given(name)) {
          throw ConfigError(std::string("scissorhands: mode=eval_code fixes ") + name +
                            "; leave it out, or use mode=paper");
        }
      }
      if (arguments.given("budget")) recipe.notes.emplace_back("mode=eval_code has no budget");
      arguments.set("budget", "auto");
      arguments.set("window", std::to_string(kRows));
      arguments.set("recent", std::to_string(kNewest));
      scoring.make = [trace = geometry.trace](const LayerShape& shape) {
        return std::make_unique<HighVotes>(shape, trace);
      };
      for (RowIndex row = HighVotes::kFrom; row < geometry.prompt; ++row)
        recipe.cuts.push_back(row);
      recipe.schedule = own(Schedule::every_pass());
      recipe.notes.emplace_back(
          "mode=eval_code: a row's line depends on how long the whole trace is, and is taken from "
          "full-cache attention");
      recipe.scorer = own(scoring);
      recipe.shape = own(keep_positive());
      recipe.protect = own(protect_recent(kNewest));
      recipe.closed_form = false;
      recipe.reads_trace = true;
      return recipe;
    }
    const RowIndex window = arguments.count("window");
    scoring.make = [window](const LayerShape& shape) {
      return std::make_unique<LowVotes>(window, shape.heads);
    };
    recipe.scorer = own(scoring);
    recipe.role_bytes = window * geometry.tokens * geometry.kv_heads;  // a vote a row and entry
    recipe.size = size_of(arguments);
    recipe.shape = own(std::make_shared<SawTooth>(arguments.real("drop")));
    recipe.competing = true;
    recipe.protect = own(protect_recent(arguments.count("recent")));
    recipe.knob = budget_knob(geometry);
    recipe.knob->monotone = false;  // where the teeth fall changes with their length
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
