// SPDX-License-Identifier: Apache-2.0
// Lookahead Q-Cache: SnapKV once more, when a draft has been generated from a cache that it cut:
// the votes of the prompt's last `window` rows and of the draft's first `ahead` rows, over the full
// prompt; then the best stay, and the newest `window`. The draft's keys are never read.
// Stand-in: the trace's own answer takes the place of the draft, so it reads rows to come.
// mask=code: the program masks as if these window + ahead rows were the prompt's last, so that each
// sees `ahead` tokens less than it could, a slip; mask=causal: what it could see.
// Source: Wang et al., arXiv 2505.20334; code noforit/Lookahead_Q-Cache (window 8, ahead 8, pooling
// 7, max; one set per query head: group=none). In the time between, the full cache and the draft's
// both lie in memory: B + ahead entries a head are charged at the prompt's end.
#include <algorithm>
#include <cmath>

#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/kernels.h"

namespace kvspan::policies {
namespace {

struct LookaheadSettings {
  RowIndex window = 0, ahead = 0;
  RowIndex tokens = 0;  // of the trace
  int kernel = 1;
  Group group = Group::mean;
  bool as_code = true;  // the mask
};

class AheadVotes final : public Scorer {
 public:
  explicit AheadVotes(const LookaheadSettings& settings) : settings_(settings) {}
  Needs needs() const override { return {.q = true, .k = true}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const LayerShape& shape = view.shape();
    const std::span<const TokenIndex> all = view.resident(head);
    const std::vector<float> keys = vectors_of(view, Vectors::keys, shape.kv_head(head), all);
    const RowIndex end = view.pass().end;
    const RowIndex first = std::max<RowIndex>(0, end - settings_.window);
    const RowIndex last = std::min(settings_.tokens, end + settings_.ahead);
    (void)reduce_group(shape, head, settings_.group, out, [&](int q, std::span<double> votes) {
      std::fill(votes.begin(), votes.end(), 0.0);
      for (RowIndex row = first; row < last; ++row) {
        const RowIndex newest = std::min(end - 1, settings_.as_code ? row - (last - end) : row);
        add_row(view, q, row,
                all.first(index(std::upper_bound(all.begin(), all.end(), newest) - all.begin())),
                keys, entries, votes);
      }
      pool(Pool::max, settings_.kernel, votes);
      return 0.0;
    });
    round_sums(out);
    return 0;
  }

 private:
  // Softmax of one row over the entries that it sees; `keys` are of them, in order.
  static void add_row(const View& view, int query_head, RowIndex row,
                      std::span<const TokenIndex> seen, std::span<const float> keys,
                      std::span<const TokenIndex> entries, std::span<double> votes) {
    if (seen.empty()) return;
    const std::vector<float> raw = view.query(query_head, row);
    const std::vector<double> q(raw.begin(), raw.end());
    std::vector<double> z(seen.size());
    kernels::dots(keys.data(), std::ssize(seen), view.shape().k_dim, q.data(), z.data());
    const double most = *std::max_element(z.begin(), z.end());
    double sum = 0;
    for (double& value : z) sum += value = std::exp((value - most) * view.score_scale());
    std::size_t place = 0;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      while (place < seen.size() && seen[place] < entries[i]) ++place;
      if (place < seen.size() && seen[place] == entries[i]) votes[i] += z[place] / sum;
    }
  }
  LookaheadSettings settings_;
};

}  // namespace

PolicyEntry lookahead() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "lookahead";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "SnapKV with the queries of the answer's first rows beside the prompt's last";
  entry.source = "Wang et al. 2025, arXiv 2505.20334; code noforit/Lookahead_Q-Cache";
  entry.evidence = "code read; the answer stands in for a draft";
  entry.differs =
      "the authors generate a draft from a cut cache and take its queries, here the trace's own "
      "answer; their mask hides `ahead` tokens from each row, a slip (mask=code); they keep one "
      "set per query head (group=none)";
  entry.needs = "q and k, of the first `ahead` decode rows, too";
  entry.parameters = {budget_parameter(),
                      {.name = "window",
                       .fallback = "8",
                       .unit = "rows",
                       .help = "the prompt's last rows that vote, inside the budget",
                       .range = {1, 1e6}},
                      {.name = "ahead",
                       .fallback = "8",
                       .unit = "rows",
                       .help = "rows of the answer that vote",
                       .range = {0, 1e6}},
                      {.name = "kernel",
                       .fallback = "7",
                       .unit = "entries",
                       .help = "max pooling, odd",
                       .range = {1, 1e6}},
                      {.name = "group",
                       .kind = Kind::word,
                       .fallback = "mean",
                       .help = "query heads to KV head; none: one set per query head",
                       .choices = {"mean", "max", "sum", "none"}},
                      {.name = "mask",
                       .kind = Kind::word,
                       .fallback = "code",
                       .help = "what a row sees of the prompt",
                       .choices = {"code", "causal"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const LookaheadSettings settings{arguments.count("window"),
                                     arguments.count("ahead"),
                                     geometry.tokens,
                                     odd_count(arguments, "kernel"),
                                     parse_group(arguments.text("group")),
                                     arguments.is("mask", "code")};
    Scoring scoring;
    scoring.make = [settings](const LayerShape&) { return std::make_unique<AheadVotes>(settings); };
    scoring.window = settings.window;
    scoring.per_query_head = settings.group == Group::none;
    scoring.by_place = true;
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    recipe.protect = own(protect_recent(settings.window));
    recipe.bound = true;
    recipe.notes.emplace_back("stand-in: the answer's own rows in place of a draft's");
    const int heads = geometry.shape(0, scoring.per_query_head).heads;
    const TokenCount cut = budget_tokens(arguments.amount("budget"), geometry, heads,
                                         geometry.entry_bytes(), "lookahead: budget");
    const std::int64_t draft = geometry.layers() * heads * geometry.entry_bytes() *
                               (std::min(cut, TokenCount{geometry.evict_point}) + settings.ahead);
    recipe.charge.during = [draft, last = geometry.evict_point - 1](RowIndex row) {
      return row == last ? draft : 0;
    };
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
