// SPDX-License-Identifier: Apache-2.0
// Attention on a device against the CPU's, for programs that run on a GPU and for the emulation.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tracegen/cuda/attention.h"
#include "tracegen/forward/attention.h"

namespace kvspan::tracegen::testing {

struct AttentionCase {
  DeviceType type = DeviceType::f32;
  AttentionProblem problem;  // visible points into `visible` of attend_on_*
  int top_k = 0;
  std::vector<float> q, k, v;         // values of `type`
  std::vector<std::uint8_t> visible;  // empty: all
};

struct AttentionResult {
  std::vector<float> out, prob, lse, mass;
  std::vector<std::int32_t> index;
};

// Normal q, k, v; `spread` is the standard deviation of the logits, `hidden` the share of keys that
// nobody sees. problem.scale is set.
[[nodiscard]] AttentionCase random_case(DeviceType type, AttentionProblem problem, int top_k,
                                        double spread, double hidden, unsigned seed);
// Replaces q and k by integers in [-variety, variety] and the scale by 1 / 2: sums are exact.
void round_to_integers(AttentionCase& input, int variety);

[[nodiscard]] AttentionResult attend_on_host(const AttentionCase& input);    // fp64 inside
[[nodiscard]] AttentionResult attend_on_device(const AttentionCase& input);  // attention_cuda

// Empty if `got` is `want` within the rounding of the type, else the worst element: which, both
// values, and by how many times the bound it is off. A key of the top K may be another one whose
// probability is as large.
[[nodiscard]] std::string worst_difference(const AttentionCase& input, const AttentionResult& want,
                                           const AttentionResult& got);
[[nodiscard]] bool same_bits(const AttentionResult& a, const AttentionResult& b);

}  // namespace kvspan::tracegen::testing
