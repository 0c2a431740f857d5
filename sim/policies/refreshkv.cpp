// SPDX-License-Identifier: Apache-2.0
// RefreshKV: the full cache stays, and each layer keeps a copy of K entries per KV head that most
// generated rows read instead; now and then a row reads everything, and the copy is made anew.
//   copy     the K best of max over the group, then max-pooled (7), of one full row's attention;
//            first the prompt's last row's. Between full rows each new entry joins it, and the
//            entry that scored lowest in the last full row leaves.
//   refresh  every `stride` rows, per layer: a full row if the mean query (over all query heads)
//            has turned from the last full row's: cosine <= threshold. schedule=fixed: always.
// The decision never looks at the full row. It saves traffic, not memory.
// Source: Xu et al., arXiv 2411.05787 (v1: "Recycled Attention", fixed schedule); no code is
// public: a reading note, and a third-party implementation that cites the paper's equations. Left
// out: the authors' optional continued pre-training. Rows are counted from the first generated one
// (1). Entries born since the last full row exist in the copy only until they are merged; here they
// count in both, so bytes are an upper bound by that many entries.
#include <algorithm>
#include <cmath>
#include <deque>
#include <numeric>

#include "sim/policies/shared/pages.h"

namespace kvspan::policies {
namespace {

struct RefreshSettings {
  TokenCount copied = 1;
  RowIndex stride = 5;
  double threshold = 0.95;
  int kernel = 7;
  bool compare = true;
};

class PartialCache final : public Selector {
 public:
  PartialCache(const RefreshSettings& settings, const LayerShape& shape)
      : settings_(settings), copies_(index(shape.heads)) {}
  Needs needs() const override {
    return {.observe = Observe::from_prompt_end, .q = settings_.compare};
  }

  void select(const View& view, std::span<Reads> reads) override {
    const Pass& pass = view.pass();
    if (!generates(pass)) return;
    const RowIndex row = pass.begin;
    if (refreshes(view, row)) {
      full_row_ = row;
      return;
    }
    const LayerShape& shape = view.shape();
    for (int head = 0; head < shape.heads; ++head) {
      const auto list = view.resident(head);
      std::deque<TokenIndex>& copy = copies_[index(head)];
      copy.push_back(static_cast<TokenIndex>(row));
      std::vector<TokenIndex> attended;
      for (const TokenIndex t : copy) {
        if (std::binary_search(list.begin(), list.end(), t)) attended.push_back(t);
      }
      std::sort(attended.begin(), attended.end());
      if (static_cast<TokenCount>(copy.size()) > settings_.copied) copy.pop_front();
      if (attended.size() == list.size()) continue;
      for (int q = head * shape.group(); q < (head + 1) * shape.group(); ++q)
        reads[index(q)].attended = attended;
    }
  }

  void observe(const View& view, RowIndex begin, RowIndex end) override {
    const RowIndex last_of_prompt = view.pass().prompt_end - 1;
    for (const RowIndex row : {last_of_prompt, full_row_}) {
      if (row >= begin && row < end) refresh(view, row);
    }
  }

 private:
  [[nodiscard]] bool refreshes(const View& view, RowIndex row) const {
    if ((row - view.pass().prompt_end + 1) % settings_.stride != 0) return false;
    if (!settings_.compare) return true;
    const std::vector<double> now = mean_query(view, row);
    double product = 0;
    double norms[2] = {0, 0};
    for (std::size_t i = 0; i < now.size(); ++i) {
      product += now[i] * query_[i];
      norms[0] += now[i] * now[i];
      norms[1] += query_[i] * query_[i];
    }
    const double norm = std::sqrt(norms[0] * norms[1]);
    return (norm > 0 ? product / norm : 1.0) <= settings_.threshold;
  }

  static std::vector<double> mean_query(const View& view, RowIndex row) {
    std::vector<double> out(index(view.shape().k_dim), 0.0);
    for (int q = 0; q < view.shape().query_heads; ++q) {
      const std::vector<float> query = view.query(q, row);
      for (std::size_t i = 0; i < out.size(); ++i) out[i] += static_cast<double>(query[i]);
    }
    return out;  // the sum: its direction is the mean's
  }

  // Makes the copies anew from what `row` attended to.
  void refresh(const View& view, RowIndex row) {
    if (settings_.compare) query_ = mean_query(view, row);
    for (int head = 0; head < view.shape().heads; ++head) {
      const auto list = view.resident(head);
      std::vector<double> scores(list.size());
      reduce_group(view.shape(), head, Group::max, scores, [&](int q, std::span<double> out) {
        return view.probabilities(q, row, list, out);
      });
      pool(Pool::max, settings_.kernel, scores);
      const std::vector<float> rounded(scores.begin(), scores.end());
      std::vector<std::int32_t> best = best_of(rounded, index(settings_.copied));
      std::sort(best.begin(), best.end(), [&](std::int32_t a, std::int32_t b) {  // first to leave
        return rounded[index(a)] != rounded[index(b)] ? rounded[index(a)] < rounded[index(b)]
                                                      : a > b;
      });
      copies_[index(head)].clear();
      for (const std::int32_t i : best) copies_[index(head)].push_back(list[index(i)]);
    }
  }

  RefreshSettings settings_;
  std::vector<std::deque<TokenIndex>> copies_;  // [heads] in the order in which they leave
  std::vector<double> query_;                   // direction of the last full row's mean query
  RowIndex full_row_ = -1;
};

}  // namespace

PolicyEntry refreshkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "refreshkv";
  entry.kind = MethodKind::selection;
  entry.summary = "most rows read a small copy, which full rows make anew; evicts nothing";
  entry.source = "Xu et al. 2024, arXiv 2411.05787";
  entry.evidence = "secondary (no public code)";
  entry.differs =
      "no public code; thresholds differ between versions and models (0.8, 0.95); version 1 "
      "refreshes on a fixed stride (schedule=fixed); the third-party code compares mean queries "
      "before rotary, here they are rotated, as the paper does not say otherwise: rotation alone "
      "lowers the cosine, so that more rows refresh";
  entry.needs =
      "q, and k or probabilities of the prompt's last and all generated rows; schedule=fixed: "
      "those rows only";
  Parameter budget = budget_parameter("12.5%");
  budget.help = "entries copied for the rows between full rows";
  entry.parameters = {budget,
                      {.name = "stride",
                       .fallback = "5",
                       .unit = "rows",
                       .help = "rows from one decision to refresh to the next",
                       .range = {1, 1e9}},
                      {.name = "threshold",
                       .kind = Kind::real,
                       .fallback = "0.95",
                       .help = "refresh if the cosine of the mean queries is at most it",
                       .range = {0, 1}},
                      {.name = "kernel",
                       .fallback = "7",
                       .unit = "tokens",
                       .help = "max-pooling of the scores, odd",
                       .range = {1, 1001}},
                      {.name = "schedule",
                       .kind = Kind::word,
                       .fallback = "compare",
                       .help = "refresh when queries have turned, or in every stride",
                       .choices = {"compare", "fixed"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    RefreshSettings s;
    s.copied = entries_of(arguments, "budget", geometry);
    s.stride = arguments.count("stride");
    s.threshold = arguments.real("threshold");
    s.kernel = odd_count(arguments, "kernel");
    s.compare = arguments.is("schedule", "compare");
    Recipe recipe;
    recipe.selector = own(SelectorFactory(
        [s](const LayerShape& shape) { return std::make_unique<PartialCache>(s, shape); }));
    // The copies of every KV head, and one mean query a layer.
    const std::int64_t heads = std::int64_t{geometry.layers()} * geometry.kv_heads;
    recipe.charge.during = [heads, s, each = geometry.entry_bytes(),
                            prompt = geometry.prompt](RowIndex row) {
      return row < prompt ? 0 : heads * std::min<TokenCount>(s.copied, row + 1) * each;
    };
    if (s.compare) recipe.charge.once = geometry.layers() * geometry.k_dim * geometry.kv_bytes;
    recipe.knob = budget_knob(geometry);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
