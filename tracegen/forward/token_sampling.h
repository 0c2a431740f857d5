// SPDX-License-Identifier: Apache-2.0
// From logits to the next token, and to how surprising a given one is.
#pragma once

#include <cstdint>
#include <random>
#include <span>

namespace kvspan::tracegen {

struct Sampling {
  double temperature = 0;  // 0: greedy
  double top_p = 1;
  int top_k = 0;  // 0: all
  std::uint64_t seed = 0;
};

// -ln p(next) in nats, under the model's own distribution.
//   logits   [vocabulary]
// Errors: CheckpointError when it is not a number.
[[nodiscard]] float nll_of(std::span<const float> logits, std::int32_t next);

// The model's choice: the largest logit, ties to the lower id; or drawn from what temperature,
// top-k and top-p leave. The random numbers are the same on every platform, as no library
// distribution is used; std::exp, which they are compared with, may differ in the last bit.
class Sampler {
 public:
  explicit Sampler(const Sampling& sampling) : s_(sampling), random_(sampling.seed) {}
  [[nodiscard]] std::int32_t operator()(std::span<const float> logits);

 private:
  Sampling s_;
  std::mt19937_64 random_;
};

}  // namespace kvspan::tracegen
