// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/row_sums.h"

#include <algorithm>

namespace kvspan::policies {

void RowSums::observe(const View& view, RowIndex begin, RowIndex end) {
  const LayerShape& shape = view.shape();
  for (auto& sums : sums_) sums.resize(std::max(sums.size(), index(end)), 0.0);
  std::vector<double> p, sums;
  for (RowIndex row = begin; row < end; ++row) {
    double slack = 0;
    for (int q = 0; q < shape.query_heads; ++q) {
      const std::span<const TokenIndex> entries = resident_up_to(view, q / shape.group(), row);
      p.resize(entries.size());
      slack = std::max(slack, view.probabilities(q, row, entries, p));
      weigh({shape.model_layer, q, row, entries}, p);
      std::vector<double>& all = sums_[index(q)];
      sums.resize(entries.size());
      for (std::size_t i = 0; i < sums.size(); ++i) sums[i] = all[index(entries[i])];
      add(p, sums);
      for (std::size_t i = 0; i < sums.size(); ++i) all[index(entries[i])] = sums[i];
    }
    slack_ += slack;
  }
}

double RowSums::score(const View& view, int head, std::span<const TokenIndex> entries,
                      std::span<double> out) {
  const double slack =
      reduce_group(view.shape(), head, Group::sum, out, [&](int q, std::span<double> sums) {
        for (std::size_t i = 0; i < entries.size(); ++i)
          sums[i] = sums_[index(q)][index(entries[i])];
        return slack_;
      });
  round_sums(out);
  return slack;
}

void RowSums::add(std::span<const double> p, std::span<double> sums) const {
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += p[i];
}

}  // namespace kvspan::policies
