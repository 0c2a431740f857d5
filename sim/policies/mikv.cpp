// SPDX-License-Identifier: Apache-2.0
// MiKV ("No Token Left Behind"): nothing is evicted; what H2O would evict is kept in few bits. The
// high tier holds `ratio` of the entries of every KV head, half of them the newest; the others are
// quantised when they leave it and never come back. Prompt rows attend before tiers are formed.
// Composed, another policy's victims are demoted in place of dying: snapkv(budget=512)+mikv.
// Source: Yang et al., arXiv 2402.18096; no official code found. The quantiser is per token, in
// groups of half a head's channels (which keeps rotary halves apart); keys are multiplied by a
// balancer b_c = sqrt(max|q_c| / max|k_c|) first, taken from the prompt.
//
// Decided here: the paper does not say whether the ratio is of the current length or frozen at the
// prompt (ratio_mode), and not how GQA is handled: importance is summed and max|q| taken over the
// group; of a high tier of an odd size the newest have one more. Overhead: a score of 4 bytes for
// each entry that competes (a composed scorer's state instead), and once there are tiers a bit per
// entry and the balancer.
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/mikv_rule.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

// `ratio` of the rows so far, unless a composed policy brings a size.
class HighTier final : public Budget {
 public:
  HighTier(Amount ratio, RowIndex frozen) : ratio_(std::move(ratio)), frozen_(frozen) {}
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    return sizing.tokens != kAll ? sizing.tokens : count(sizing.born);
  }
  [[nodiscard]] TokenCount count(RowIndex born) const {
    return ratio_.share_of(frozen_ > 0 ? frozen_ : born);
  }

 private:
  Amount ratio_;
  RowIndex frozen_;  // 0: running
};

}  // namespace

PolicyEntry mikv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "mikv";
  entry.kind = MethodKind::mixed_precision;
  entry.summary = "keeps every entry: heavy hitters in full, H2O's victims in few bits";
  entry.source = "Yang et al. 2024, arXiv 2402.18096";
  entry.evidence = "secondary (a third-party implementation that cites the paper)";
  entry.differs =
      "no public code; whether the high tier grows with the text is not said (ratio_mode=), "
      "nor how a group's heads share it (importance summed)";
  entry.needs =
      "q and k, or probabilities of all rows (or column_mass of the prompt and all decode rows); "
      "q, "
      "k and v for the error of the output";
  entry.parameters = {{.name = "ratio",
                       .kind = Kind::amount,
                       .fallback = "20%",
                       .unit = "% of the entries",
                       .help = "in the high tier"},
                      {.name = "hi",
                       .kind = Kind::word,
                       .fallback = "16",
                       .unit = "bits",
                       .help = "of the high tier; 16: as born",
                       .choices = {"16", "8", "4"}},
                      {.name = "lo",
                       .kind = Kind::word,
                       .fallback = "2",
                       .unit = "bits",
                       .help = "of the low tier",
                       .choices = {"2", "3", "4"}},
                      {.name = "group",
                       .fallback = "auto",
                       .unit = "channels",
                       .help = "that share a scale and a zero; auto: half of a head's",
                       .range = {1, 1e6}},
                      {.name = "recent",
                       .kind = Kind::amount,
                       .fallback = "50%",
                       .unit = "% of the high tier",
                       .help = "newest entries, always in it"},
                      {.name = "balancer",
                       .kind = Kind::flag,
                       .fallback = "true",
                       .help = "scale key channels first"},
                      {.name = "ratio_mode",
                       .kind = Kind::word,
                       .fallback = "running",
                       .help = "running: of the entries so far; frozen: of the prompt",
                       .choices = {"running", "frozen"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    (void)share_argument(arguments, "ratio");
    const double heavy = 1.0 - share_argument(arguments, "recent");
    const Tiers::Settings s{std::stoi(arguments.text("hi")), std::stoi(arguments.text("lo")),
                            arguments.has("group") ? arguments.count("group") : 0,
                            arguments.flag("balancer")};
    const auto tier = std::make_shared<HighTier>(
        arguments.amount("ratio"), arguments.is("ratio_mode", "frozen") ? geometry.evict_point : 0);
    Recipe recipe;
    const std::int64_t heads = std::int64_t{geometry.layers()} * geometry.kv_heads;
    Scoring scoring = column_sum_scoring();
    scoring.state = [heads, tier, point = geometry.evict_point,
                     prompt = geometry.prompt](RowIndex row) {
      // The high tier as the pass of the row found it, and the newborns so far.
      const RowIndex begin = row < point ? 0 : row < prompt ? point : row;
      return heads * 4 * (std::min(begin, tier->count(begin)) + row - begin + 1);
    };
    recipe.scorer = by_default(std::move(scoring));
    recipe.schedule = by_default(Schedule::from_evict_point());
    recipe.shape = by_default(tier);
    recipe.protect = by_default(ProtectRule([heavy](TokenCount tokens) {
      return Protect{0,
                     tokens - static_cast<TokenCount>(heavy * static_cast<double>(tokens) + 1e-9)};
    }));
    const std::int64_t full = geometry.entry_bytes();
    const std::int64_t high = s.bytes(geometry, s.high);
    const std::int64_t low = s.bytes(geometry, s.low);
    Storing store;
    store.make = [s](const LayerShape& shape) { return std::make_unique<Tiers>(s, shape); };
    store.representations = {{fmt::format("low, int{}", s.low), low, 0}};
    if (s.high < 16) store.representations.push_back({fmt::format("high, int{}", s.high), high, 0});
    store.payload = [full, high, low](TokenCount competing, const Pass& pass) {
      return competing * (pass.end < pass.evict_point ? full : high) + (pass.end - competing) * low;
    };
    store.alters_vectors = true;
    store.demotes = true;
    recipe.store = own(std::move(store));
    const bool balancer = s.balancer;
    recipe.charge.during = [=, g = geometry](RowIndex row) -> std::int64_t {
      if (row < g.evict_point) return 0;
      return (heads * (row + 1) + 7) / 8 + (balancer ? heads * g.k_dim * g.kv_bytes : 0);
    };
    recipe.knob = Knob{"ratio", 1, 100, low <= high,
                       [](TokenCount percent) { return fmt::format("{}%", percent); }};
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
