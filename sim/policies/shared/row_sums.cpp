// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/row_sums.h"

#include <algorithm>
#include <atomic>

namespace kvspan::policies {

void RowSums::observe(const View& view, RowIndex begin, RowIndex end) {
  if (const auto known = view.known_state(end)) {
    // Whoever changes it makes it his own first.
    state_ = std::const_pointer_cast<State>(std::static_pointer_cast<const State>(known));
    return;
  }
  const LayerShape& shape = view.shape();
  if (state_.use_count() > 1)
    state_ = std::make_shared<State>(*state_);
  else
    std::atomic_thread_fence(std::memory_order_acquire);  // who had it as well is done with it
  for (auto& all : state_->sums) all.resize(std::max(all.size(), index(end)), 0.0);
  std::vector<double> p, sums;
  for (RowIndex row = begin; row < end; ++row) {
    double slack = 0;
    for (int q = 0; q < shape.query_heads; ++q) {
      const std::span<const TokenIndex> entries = resident_up_to(view, q / shape.group(), row);
      p.resize(entries.size());
      slack = std::max(slack, view.probabilities(q, row, entries, p));
      weigh({shape.model_layer, q, row, entries}, p);
      std::vector<double>& all = state_->sums[index(q)];
      sums.resize(entries.size());
      for (std::size_t i = 0; i < sums.size(); ++i) sums[i] = all[index(entries[i])];
      add(p, sums);
      for (std::size_t i = 0; i < sums.size(); ++i) all[index(entries[i])] = sums[i];
    }
    state_->slack += slack;
  }
  view.share_state(end, state_);
}

double RowSums::score(const View& view, int head, std::span<const TokenIndex> entries,
                      std::span<double> out) {
  const double slack =
      reduce_group(view.shape(), head, Group::sum, out, [&](int q, std::span<double> sums) {
        for (std::size_t i = 0; i < entries.size(); ++i)
          sums[i] = state_->sums[index(q)][index(entries[i])];
        return state_->slack;
      });
  round_sums(out);
  return slack;
}

void RowSums::add(std::span<const double> p, std::span<double> sums) const {
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += p[i];
}

}  // namespace kvspan::policies
