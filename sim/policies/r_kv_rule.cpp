// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/r_kv_rule.h"

#include <algorithm>
#include <cmath>

namespace kvspan::policies {

UnitKeys::UnitKeys(const View& view, int kv_head, std::span<const TokenIndex> tokens)
    : count_(tokens.size()), dim_(index(view.shape().k_dim)), total_(dim_, 0.0) {
  panels_.assign((count_ + kWide - 1) / kWide * dim_ * kWide, 0.0F);
  squares_.assign(count_, 0.0);
  for (std::size_t j = 0; j < count_; ++j) {
    const std::vector<float> k = view.key(kv_head, tokens[j]);
    const double norm = std::sqrt(squared_norm(k)) + 1e-8;
    for (std::size_t d = 0; d < dim_; ++d) {
      const auto u = static_cast<float>(static_cast<double>(k[d]) / norm);
      at(j, d) = u;
      total_[d] += static_cast<double>(u);
      squares_[j] += static_cast<double>(u) * static_cast<double>(u);
    }
  }
}

double UnitKeys::column(std::size_t j) {
  double sum = 0;
  for (std::size_t d = 0; d < dim_; ++d) sum += total_[d] * static_cast<double>(at(j, d));
  return sum - squares_[j];
}

std::pair<std::size_t, double> UnitKeys::last_above(std::size_t i, double line) {
  std::vector<float> u(dim_);
  for (std::size_t d = 0; d < dim_; ++d) u[d] = at(i, d);
  float cosine[kWide];
  for (std::size_t p = (count_ + kWide - 1) / kWide; p-- > 0;) {
    std::fill(cosine, cosine + kWide, 0.0F);
    const float* panel = panels_.data() + p * dim_ * kWide;
    for (std::size_t d = 0; d < dim_; ++d) {
      for (std::size_t w = 0; w < kWide; ++w) cosine[w] += u[d] * panel[d * kWide + w];
    }
    for (std::size_t w = kWide; w-- > 0;) {
      const std::size_t j = p * kWide + w;
      if (j < count_ && j != i && static_cast<double>(cosine[w]) > line)
        return {j, static_cast<double>(cosine[w])};
    }
  }
  return {0, i == 0 ? 0.0 : static_cast<double>(cosine[0])};
}

}  // namespace kvspan::policies
