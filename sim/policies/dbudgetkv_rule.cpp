// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/dbudgetkv_rule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace kvspan::policies {

double SinksThenNewest::score(const View& view, int /*head*/, std::span<const TokenIndex> entries,
                              std::span<double> out) {
  const auto newest = static_cast<double>(view.pass().end);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const TokenIndex t = entries[i];
    out[i] = t < sinks_ ? newest + static_cast<double>(sinks_ - t) : static_cast<double>(t);
  }
  std::vector<double> attention(entries.size());
  double slack = 0;
  for (int q = 0; q < view.shape().query_heads; ++q) {
    slack = std::max(slack, view.votes(q, std::min(rows_, view.pass().end), entries, attention));
  }
  return slack > 0 ? newest + static_cast<double>(sinks_) : 0;  // beyond any difference of scores
}

double LastVotes::score(const View& view, int head, std::span<const TokenIndex> entries,
                        std::span<double> out) {
  const double slack = view.votes(head, rows_, entries, out);
  round_sums(out);
  return slack > 0 ? static_cast<double>(rows_) : 0;  // beyond any difference of scores
}

void NormCut::counts(const View& view, const Scores& scores, const Sizing& /*sizing*/,
                     std::span<TokenCount> keep) const {
  std::fill(keep.begin(), keep.end(), kAll);
  if (settings_.skips(view.shape()) || !(settings_.threshold > 0)) return;
  const std::span<const TokenIndex> entries = scores.entries[0];  // alike in all heads
  if (settings_.by_votes) {
    if (!entries.empty()) std::fill(keep.begin(), keep.end(), kept_of_votes(view, scores));
    return;
  }
  const auto sinks = static_cast<std::size_t>(
      std::lower_bound(entries.begin(), entries.end(), settings_.sinks) - entries.begin());
  if (sinks >= entries.size()) return;
  std::fill(keep.begin(), keep.end(),
            settings_.sinks_in_norm ? kept_of_paper(view, entries, sinks)
                                    : kept_of_code(view, entries, sinks));
}

// Mean attention of the last rows in one query head; a row counts where it sees the key.
std::vector<double> NormCut::last_rows(const View& view, int query_head,
                                       std::span<const TokenIndex> entries) const {
  std::vector<double> out(entries.size());
  const RowIndex end = view.pass().end;
  const RowIndex rows = std::min(settings_.rows, end);
  view.votes(query_head, rows, entries, out);
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] /= static_cast<double>(std::min<RowIndex>(rows, end - entries[i]));
  return out;
}

std::size_t NormCut::cut(std::span<const double> norm) const {
  std::size_t begin = norm.size() - 1;
  while (begin > 0 && (norm[0] - norm[begin]) / norm[0] > settings_.threshold) --begin;
  return begin;
}

namespace {

// Adds to norm[i] a head's share of the norm of its attention in places [i, end) of its order.
void add_norms(std::span<const double> attention, int heads, std::span<double> norm) {
  double squares = 0;
  for (std::size_t i = attention.size(); i-- > 0;) {
    squares += attention[i] * attention[i];
    norm[i] += std::sqrt(squares) / heads;
  }
}

}  // namespace

TokenCount NormCut::kept_of_votes(const View& view, const Scores& scores) const {
  const std::size_t count = scores.entries[0].size();
  const int heads = view.shape().query_heads;
  std::vector<double> norm(count, 0.0), ordered(count);
  for (int q = 0; q < heads; ++q) {
    const std::vector<double>& votes = scores.values[index(q)];
    const std::vector<double> a = last_rows(view, q, scores.entries[index(q)]);
    std::vector<std::size_t> order(count);  // the least important first
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) {
      return votes[x] != votes[y] ? votes[x] < votes[y] : x > y;
    });
    for (std::size_t i = 0; i < count; ++i) ordered[i] = a[order[i]];
    add_norms(ordered, heads, norm);
  }
  if (!(norm[0] > 0)) return kAll;
  return scores.protected_[0] + static_cast<TokenCount>(count - cut(norm));
}

TokenCount NormCut::kept_of_code(const View& view, std::span<const TokenIndex> entries,
                                 std::size_t sinks) const {
  std::vector<double> norm(entries.size() - sinks, 0.0);
  const int heads = view.shape().query_heads;
  for (int q = 0; q < heads; ++q)
    add_norms(last_rows(view, q, entries.subspan(sinks)), heads, norm);
  return norm[0] > 0 ? static_cast<TokenCount>(entries.size() - cut(norm)) : kAll;
}

TokenCount NormCut::kept_of_paper(const View& view, std::span<const TokenIndex> entries,
                                  std::size_t sinks) const {
  std::vector<double> a(entries.size(), 0.0);
  const int heads = view.shape().query_heads;
  for (int q = 0; q < heads; ++q) {
    const std::vector<double> one = last_rows(view, q, entries);
    for (std::size_t j = 0; j < a.size(); ++j) a[j] += one[j] / heads;
  }
  std::reverse(a.begin() + static_cast<std::ptrdiff_t>(sinks), a.end());
  double whole = 0;
  for (const double x : a) whole += x * x;
  if (!(whole > 0)) return kAll;
  double squares = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    squares += a[i] * a[i];
    if (1 - std::sqrt(squares) / std::sqrt(whole) < settings_.threshold)
      return static_cast<TokenCount>(i + 1);
  }
  return kAll;
}

}  // namespace kvspan::policies
