// SPDX-License-Identifier: Apache-2.0
// LagKV: cuts the sequence behind the sinks into partitions of `lag` tokens and scores each by how
// widely its keys and values spread within the range of the *next* partition: normalise every
// channel by that partition's minimum and maximum, take the standard deviation over the channels,
// softmax over the partition, mean of K and V. The rank inside the partition is the score
// (cross=true: the softmax itself). The last partition and the remainder, which nothing follows,
// rank above all others.
// Source: Liang et al., arXiv 2504.04704; code AI-Lab-China-Merchants-Bank/LagKV, kvpress
// LagKVPress. As in kvpress sinks and the unscored tail count inside the budget (in the authors'
// code the kept share applies to each scored partition, the rest comes on top, and it goes on in
// decode); defaults are kvpress' too (the authors' class has sinks 16, lag 1024). Where the sources
// give 0/0 (a channel that is constant in the next partition; one channel only) the spread is 0
// here. Among entries of the top rank kvpress leaves the choice to torch; here sinks come first,
// then the newest. Entries that are ranked together are taken as one sequence without gaps.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

class Lag final : public Scorer {
 public:
  Lag(TokenCount sinks, std::int64_t lag, bool cross) : sinks_(sinks), lag_(lag), cross_(cross) {}
  Needs needs() const override { return {.k = true, .v = true}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const LayerShape& shape = view.shape();
    const int kv_head = shape.kv_head(head);
    const auto first =
        index(std::lower_bound(entries.begin(), entries.end(), sinks_) - entries.begin());
    const std::size_t behind = entries.size() - first;
    const std::size_t partitions = behind / index(lag_);
    std::fill(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(first), 3.0);
    // Between 1 (the top rank of a scored entry is below it) and 2: the newest of the tail stay.
    // Where nothing is scored, as in kvpress, they rank by position.
    const std::size_t scored = partitions < 2 ? 0 : (partitions - 1) * index(lag_);
    for (std::size_t i = scored; i < behind; ++i) {
      out[first + i] =
          (partitions < 2 ? 0.0 : 1.0) + static_cast<double>(i) / static_cast<double>(behind);
    }
    std::vector<float> next_k;  // of the partition that follows
    std::vector<float> next_v;
    if (scored > 0) {
      next_k = vectors_of(view, Vectors::keys, kv_head, entries.subspan(first, index(lag_)));
      next_v = vectors_of(view, Vectors::values, kv_head, entries.subspan(first, index(lag_)));
    }
    for (std::size_t p = 0; p * index(lag_) < scored; ++p) {
      const std::size_t begin = first + p * index(lag_);
      const auto next = entries.subspan(begin + index(lag_), index(lag_));
      const std::span<double> scores = out.subspan(begin, index(lag_));
      const std::vector<float> k =
          std::exchange(next_k, vectors_of(view, Vectors::keys, kv_head, next));
      const std::vector<float> v =
          std::exchange(next_v, vectors_of(view, Vectors::values, kv_head, next));
      const std::vector<double> of_k = spread(k, next_k, index(shape.k_dim));
      const std::vector<double> of_v = spread(v, next_v, index(shape.v_dim));
      for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = (of_k[i] + of_v[i]) / 2;
      round_sums(scores);
      if (!cross_) to_ranks(scores);
    }
    return 0;
  }

 private:
  // Softmax over a partition of the standard deviation over channels, n - 1 in the denominator.
  static std::vector<double> spread(std::span<const float> part, std::span<const float> next,
                                    std::size_t dim) {
    std::vector<float> low(next.begin(), next.begin() + static_cast<std::ptrdiff_t>(dim));
    std::vector<float> high = low;
    for (std::size_t at = dim; at < next.size(); at += dim) {
      for (std::size_t d = 0; d < dim; ++d) {
        low[d] = std::min(low[d], next[at + d]);
        high[d] = std::max(high[d], next[at + d]);
      }
    }
    std::vector<double> out;
    std::vector<double> x(dim);
    for (std::size_t at = 0; at < part.size(); at += dim) {
      double mean = 0;
      for (std::size_t d = 0; d < dim; ++d) {
        const double range = static_cast<double>(high[d]) - static_cast<double>(low[d]);
        x[d] = range > 0 ? (static_cast<double>(part[at + d]) - static_cast<double>(low[d])) / range
                         : 0.0;
        mean += x[d] / static_cast<double>(dim);
      }
      double squares = 0;
      for (const double value : x) squares += (value - mean) * (value - mean);
      out.push_back(dim < 2 ? 0.0 : std::sqrt(squares / static_cast<double>(dim - 1)));
    }
    const double most = *std::max_element(out.begin(), out.end());
    double sum = 0;
    for (double& value : out) sum += value = std::exp(value - most);
    for (double& value : out) value /= sum;
    return out;
  }

  // Ascending ranks over the length; of equal scores the lower index ranks higher.
  static void to_ranks(std::span<double> scores) {
    std::vector<std::size_t> order(scores.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return scores[a] != scores[b] ? scores[a] < scores[b] : a > b;
    });
    for (std::size_t rank = 0; rank < order.size(); ++rank)
      scores[order[rank]] = static_cast<double>(rank) / static_cast<double>(order.size());
  }

  TokenCount sinks_;
  std::int64_t lag_;
  bool cross_;
};

}  // namespace

PolicyEntry lagkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "lagkv";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps keys and values that spread widely within the range of the next tokens";
  entry.source = "Liang et al. 2025, arXiv 2504.04704; code NVIDIA/kvpress";
  entry.evidence = "code read";
  entry.differs =
      "the authors keep a share of every partition with the tail on top, and go on in decode "
      "(sinks 16, lag 1,024); kvpress ranks once over the prompt, as here";
  entry.needs = "k and v";
  entry.parameters = {budget_parameter(),
                      {.name = "sinks",
                       .fallback = "4",
                       .unit = "tokens",
                       .help = "first tokens, ranked above all"},
                      {.name = "lag",
                       .fallback = "128",
                       .unit = "tokens",
                       .help = "length of a partition",
                       .range = {1, 1e9}},
                      {.name = "cross",
                       .kind = Kind::flag,
                       .fallback = "false",
                       .help = "compares scores across partitions, in place of ranks"}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Scoring scoring;
    scoring.make = [sinks = arguments.count("sinks"), lag = arguments.count("lag"),
                    cross = arguments.flag("cross")](const LayerShape&) {
      return std::make_unique<Lag>(sinks, lag, cross);
    };
    scoring.by_place = true;
    scoring.sharing = Sharing::always;
    scoring.order.ties_from = 1;  // the top rank
    return budgeted(arguments, geometry, own(scoring));
  };
  return entry;
}

}  // namespace kvspan::policies
