// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/scissorhands_rule.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace kvspan::policies {
namespace {

constexpr int kFirstLayer = 5, kLastLayer = 35;

}  // namespace

void RecentVotes::observe(const View& view, RowIndex begin, RowIndex end) {
  const Pass& pass = view.pass();
  for (RowIndex row = begin; row < end; ++row) {
    if (row >= std::min(pass.end, pass.evict_point) - window_) add(view, row);
  }
}

double RecentVotes::sums(const View& view, int head, std::span<const TokenIndex> entries,
                         std::span<double> out) {
  while (!ring_.empty() && ring_.front().row < view.pass().end - window_) forget();
  const std::vector<std::int32_t>& sum = sums_[index(head)];
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto t = static_cast<std::size_t>(entries[i]);
    out[i] = t < sum.size() ? sum[t] : 0;
  }
  std::int64_t doubts = 0;
  for (const Row& row : ring_) doubts += row.heads[index(head)].doubts;
  return static_cast<double>(doubts);
}

void RecentVotes::add(const View& view, RowIndex row) {
  if (!ring_.empty() && ring_.front().row <= row - window_) forget();
  const LayerShape& shape = view.shape();
  Row& out = ring_.emplace_back(Row{row, std::vector<Row::Votes>(index(shape.heads))});
  for (int h = 0; h < shape.heads; ++h) {
    const std::span<const TokenIndex> entries = resident_up_to(view, h, row);
    std::vector<double> p(entries.size());
    std::vector<std::uint8_t> one(entries.size());
    Row::Votes& votes = out.heads[index(h)];
    std::vector<std::uint8_t>& all = votes.count;
    all.assign(entries.size(), 0);
    for (int g = 0; g < shape.group(); ++g) {
      const int q = h * shape.group() + g;
      const double slack = view.probabilities(q, row, entries, p);
      std::fill(one.begin(), one.end(), std::uint8_t{0});
      votes.doubts += vote({q, row, p, slack}, one) > 0 ? 1 : 0;
      for (std::size_t i = 0; i < all.size(); ++i)
        all[i] = static_cast<std::uint8_t>(all[i] + one[i]);
    }
    std::vector<std::int32_t>& sum = sums_[index(h)];
    sum.resize(std::max(sum.size(), index(row + 1)), 0);
    if (std::ssize(entries) <= row) votes.entries.assign(entries.begin(), entries.end());
    for (std::size_t i = 0; i < all.size(); ++i) sum[index(entries[i])] += all[i];
  }
}

void RecentVotes::forget() {
  for (std::size_t h = 0; h < sums_.size(); ++h) {
    const Row::Votes& votes = ring_.front().heads[h];
    for (std::size_t i = 0; i < votes.count.size(); ++i)
      sums_[h][votes.entries.empty() ? i : index(votes.entries[i])] -= votes.count[i];
  }
  ring_.pop_front();
}

double LowVotes::score(const View& view, int head, std::span<const TokenIndex> entries,
                       std::span<double> out) {
  const double doubts = sums(view, head, entries, out);
  for (double& value : out) value = -value;
  return doubts;
}

std::int64_t LowVotes::vote(const Attended& attended, std::span<std::uint8_t> votes) {
  const auto& [query_head, row, p, slack] = attended;
  const double line = 1.0 / static_cast<double>(p.size());
  std::int64_t close = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    // In fp32, so that equal shares are not below their mean.
    votes[i] = static_cast<float>(p[i]) < static_cast<float>(line) ? 1 : 0;
    close += slack > 0 && std::abs(p[i] - line) <= slack ? 1 : 0;
  }
  return close;
}

HighVotes::HighVotes(const LayerShape& shape, const Trace* trace)
    : RecentVotes(kRows, shape.heads),
      shape_(shape),
      trace_(trace),
      acts_(shape.model_layer >= kFirstLayer && shape.model_layer <= kLastLayer) {}

double HighVotes::score(const View& view, int head, std::span<const TokenIndex> entries,
                        std::span<double> out) {
  if (acts_ && view.pass().end >= kFrom) return sums(view, head, entries, out);
  std::fill(out.begin(), out.end(), 1.0);
  return 0;
}

std::int64_t HighVotes::vote(const Attended& attended, std::span<std::uint8_t> votes) {
  if (!acts_) return 0;
  if (lines_.empty()) draw_lines();
  const double line = lines_[index(attended.query_head)][index(attended.row)];
  std::int64_t close = 0;
  for (std::size_t i = 0; i < votes.size(); ++i) {
    const double p = attended.p[i];
    votes[i] = static_cast<float>(p) > static_cast<float>(line) ? 1 : 0;
    close += attended.slack > 0 && std::abs(p - line) <= 2 * attended.slack ? 1 : 0;
  }
  return close;
}

void HighVotes::draw_lines() {
  const RowIndex tokens = trace_->meta().tokens;
  // From the largest down; as Python forms int(0.9 * T).
  const RowIndex place = tokens - static_cast<RowIndex>(0.9 * static_cast<double>(tokens)) - 1;
  lines_.assign(index(shape_.query_heads), std::vector<double>(index(tokens), 0.0));
  std::vector<double> p;
  for_each_row(*trace_, shape_.layer, 0, tokens, [&](int q, RowIndex row, const RowTerms& terms) {
    if (row < place) return;  // a later token's zero
    const double inverse = 1.0 / (terms.sum + terms.sink);
    p.assign(terms.terms, terms.terms + row + 1);
    std::nth_element(p.begin(), p.begin() + place, p.end(), std::greater<>());
    lines_[index(q)][index(row)] = p[index(place)] * inverse;
  });
}

}  // namespace kvspan::policies
