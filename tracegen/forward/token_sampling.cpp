// SPDX-License-Identifier: Apache-2.0
#include "tracegen/forward/token_sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "sim/base/error.h"
#include "tracegen/forward/dense_kernels.h"

namespace kvspan::tracegen {
namespace {

// ln of the sum of exp(logits).
double log_sum_exp(std::span<const float> logits) {
  const auto count = static_cast<std::int64_t>(logits.size());
  const float max = kernels::maximum(logits.data(), count);
  return double{max} + std::log(kernels::sum_exp(logits.data(), count, max));
}

}  // namespace

float nll_of(std::span<const float> logits, std::int32_t next) {
  const double nll =
      log_sum_exp(logits) - static_cast<double>(logits[static_cast<std::size_t>(next)]);
  if (!std::isfinite(nll))
    throw CheckpointError("a logit is not a number: the weights are damaged, or overflow fp32");
  return static_cast<float>(std::max(0.0, nll));
}

std::int32_t Sampler::operator()(std::span<const float> logits) {
  if (s_.temperature == 0) {
    // The first of equal ones. Equal rows of the output head may still differ in the last bits
    // here, and on other machines not: they come from gemm().
    return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) -
                                     logits.begin());
  }
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit = [&](std::int32_t id) {
    return static_cast<double>(logits[static_cast<std::size_t>(id)]);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return logit(a) > logit(b); });
  if (s_.top_k > 0) order.resize(std::min(order.size(), static_cast<std::size_t>(s_.top_k)));
  std::vector<double> weights;
  for (const std::int32_t id : order)
    weights.push_back(std::exp((logit(id) - logit(order.front())) / s_.temperature));
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  double kept = 0;
  std::size_t count = 0;
  while (count < weights.size() && (count == 0 || kept < s_.top_p * total))
    kept += weights[count++];
  double at = static_cast<double>(random_() >> 11U) * 0x1p-53 * kept;
  std::size_t i = 0;
  while (i + 1 < count && at >= weights[i]) at -= weights[i++];
  return order[i];
}

}  // namespace kvspan::tracegen
