// SPDX-License-Identifier: Apache-2.0
#include "tests/twin/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace kvspan::test {

using tracegen::AttentionProblem;
using tracegen::AttentionTensors;

void attention_twin(const AttentionProblem& p, const AttentionTensors& t) {
  const std::int64_t keys = p.first + p.rows;
  const int group = p.query_heads / p.kv_heads;
  std::vector<double> z(static_cast<std::size_t>(keys));
  std::vector<std::int32_t> order;
  for (std::int64_t r = 0; r < p.rows; ++r) {
    const std::int64_t row = p.first + r;
    const std::int64_t begin = p.window > 0 ? std::max<std::int64_t>(0, row - p.window + 1) : 0;
    for (int h = 0; h < p.query_heads; ++h) {
      const int kv = h / group;
      const float* q = t.q + (r * p.query_heads + h) * p.head_dim;
      order.clear();
      double max = -std::numeric_limits<double>::infinity();
      for (std::int64_t j = begin; j <= row; ++j) {
        if (p.visible != nullptr && p.visible[kv * keys + j] == 0) continue;
        const float* k = t.k + (j * p.kv_heads + kv) * p.head_dim;
        z[static_cast<std::size_t>(j)] =
            std::inner_product(q, q + p.head_dim, k, 0.0) * static_cast<double>(p.scale);
        max = std::max(max, z[static_cast<std::size_t>(j)]);
        order.push_back(static_cast<std::int32_t>(j));
      }
      double sum = 0;
      for (const std::int32_t j : order) sum += std::exp(z[static_cast<std::size_t>(j)] - max);
      const double lse = order.empty() ? max : max + std::log(sum);
      float* out = t.out + (r * p.query_heads + h) * p.head_dim;
      std::vector<double> mean(static_cast<std::size_t>(p.head_dim));
      for (const std::int32_t j : order) {
        double& term = z[static_cast<std::size_t>(j)];
        term = std::exp(term - lse);
        const float* v = t.v + (std::int64_t{j} * p.kv_heads + kv) * p.head_dim;
        for (int i = 0; i < p.head_dim; ++i)
          mean[static_cast<std::size_t>(i)] += term * double{v[i]};
        if (t.column_mass != nullptr)
          t.column_mass[h * t.column_stride + j] += static_cast<float>(term);
      }
      std::copy(mean.begin(), mean.end(), out);
      if (t.lse != nullptr) t.lse[r * p.query_heads + h] = static_cast<float>(lse);
      if (t.top_k == 0) continue;
      std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
        return z[static_cast<std::size_t>(a)] > z[static_cast<std::size_t>(b)];
      });
      for (int i = 0; i < t.top_k; ++i) {
        const bool some = static_cast<std::size_t>(i) < order.size();
        const std::int64_t at = (r * p.query_heads + h) * t.top_k + i;
        const std::int32_t j = some ? order[static_cast<std::size_t>(i)] : -1;
        if (t.index != nullptr) t.index[at] = j;
        if (t.prob != nullptr)
          t.prob[at] = some ? static_cast<float>(z[static_cast<std::size_t>(j)]) : 0.0F;
      }
    }
  }
}

}  // namespace kvspan::test
