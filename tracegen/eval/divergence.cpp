// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/divergence.h"

#include <algorithm>
#include <cmath>

namespace kvspan::tracegen {
namespace {

double log_sum_exp(std::span<const float> logits) {
  const auto max = static_cast<double>(*std::ranges::max_element(logits));
  double sum = 0;
  for (const float z : logits) sum += std::exp(static_cast<double>(z) - max);
  return max + std::log(sum);
}

}  // namespace

double divergence(std::span<const float> p_logits, std::span<const float> q_logits) {
  const double p_sum = log_sum_exp(p_logits);
  const double q_sum = log_sum_exp(q_logits);
  double out = 0;
  for (std::size_t i = 0; i < p_logits.size(); ++i) {
    const double p = static_cast<double>(p_logits[i]) - p_sum;
    const double q = static_cast<double>(q_logits[i]) - q_sum;
    out += std::exp(p) * (p - q);
  }
  return std::max(0.0, out);
}

}  // namespace kvspan::tracegen
