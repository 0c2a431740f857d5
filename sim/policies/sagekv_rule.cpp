// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/sagekv_rule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace kvspan::policies {
namespace {

// One list per query head of the group, best first, with the probabilities of the prompt's last
// row.
struct Ranking {
  std::vector<std::size_t> order;
  std::vector<double> p;  // in this order
  double slack = 0;
  // True if nobody can cross the line behind the `count` best.
  [[nodiscard]] bool sure(std::size_t count) const {
    return slack == 0 || count == 0 || count >= p.size() || p[count - 1] - p[count] > 2 * slack;
  }
};

Ranking rank(const View& view, int query_head, std::span<const TokenIndex> entries) {
  Ranking out;
  std::vector<double> p(entries.size());
  out.slack = view.probabilities(query_head, view.pass().end - 1, entries, p);
  round_sums(p);
  out.order.resize(p.size());
  std::iota(out.order.begin(), out.order.end(), std::size_t{0});
  std::stable_sort(out.order.begin(), out.order.end(),
                   [&](std::size_t a, std::size_t b) { return p[a] > p[b]; });
  for (const std::size_t i : out.order) out.p.push_back(p[i]);
  return out;
}

// Both return true if nobody can cross a line.
bool join(const std::vector<Ranking>& heads, std::size_t each, std::span<double> out) {
  std::fill(out.begin(), out.end(), 0.0);
  bool sure = true;
  for (const Ranking& head : heads) {
    const std::size_t count = std::min(each, head.order.size());
    for (std::size_t i = 0; i < count; ++i) {
      double& value = out[head.order[i]];
      value = std::max(value, static_cast<double>(count - i));
    }
    sure = sure && head.sure(count);
  }
  return sure;
}

bool fill(const std::vector<Ranking>& heads, std::size_t each, std::span<double> out) {
  const double untaken = std::numeric_limits<double>::lowest();
  std::fill(out.begin(), out.end(), untaken);
  const std::size_t wanted = each * heads.size();
  std::size_t taken = 0;
  bool sure = true;
  for (std::size_t i = 0; i < out.size(); ++i) {
    for (std::size_t g = 0; g < heads.size(); ++g) {
      double& value = out[heads[g].order[i]];
      if (value != untaken) continue;
      value = -static_cast<double>(taken);
      if (++taken != wanted) continue;
      // This head's pick was the last one: before it, and with it, every list was cut.
      for (std::size_t other = 0; other < heads.size(); ++other)
        sure = sure && heads[other].sure(i + (other <= g ? 1 : 0));
      sure = sure && heads[g].sure(i);
    }
  }
  return sure;
}

}  // namespace

double Turns::score(const View& view, int head, std::span<const TokenIndex> entries,
                    std::span<double> out) {
  std::vector<Ranking> heads;
  for (int g = 0; g < view.shape().group(); ++g)
    heads.push_back(rank(view, head * view.shape().group() + g, entries));
  const bool sure =
      duplicates_ == Duplicates::join ? join(heads, each_, out) : fill(heads, each_, out);
  return sure ? 0.0 : std::numeric_limits<double>::infinity();
}

double SummedLogits::score(const View& view, int head, std::span<const TokenIndex> entries,
                           std::span<double> out) {
  const LayerShape& shape = view.shape();
  const int per_kv = shape.query_heads / shape.kv_heads;
  (void)reduce_group(shape, head, Group::sum, out, [&](int q, std::span<double> z) {
    const RowIndex row = view.pass().end - 1;
    const std::vector<float> query = view.query(q, row);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const std::vector<float> key = view.key(q / per_kv, entries[i]);
      z[i] = dot(query, key) * view.score_scale();
      if (softcap_ > 0) z[i] = softcap_ * std::tanh(z[i] / softcap_);
      if (window_ > 0 && entries[i] <= row - window_)
        z[i] = -std::numeric_limits<double>::infinity();
    }
    return 0.0;
  });
  round_sums(out);
  return 0;
}

}  // namespace kvspan::policies
