// SPDX-License-Identifier: Apache-2.0
// What TurboQuant's quantisers give back.
#pragma once

#include <span>
#include <vector>

namespace kvspan::policies {

// The 2^bits levels that are best for normal numbers of variance 1, ascending.
// Source: Lloyd's and Max's conditions, Max 1960.
[[nodiscard]] std::vector<double> normal_levels(int bits);

// The same as vLLM's solver has them: integrals by steps, at most 200 rounds. The outermost are up
// to 0.0017 less. REQUIRES: 3 or 4 bits.
[[nodiscard]] std::vector<double> levels_of_vllm(int bits);

// Walsh-Hadamard transform, orthonormal, its own inverse. REQUIRES: a power of two.
void hadamard(std::span<double> x);

// A key: its direction is turned, every coordinate becomes the nearest level of variance 1 / dim,
// and what these make is as long as the key was, in fp16.
//   levels   for variance 1
void through_levels(std::span<float> key, std::span<const double> levels);

// A value: 2^bits equal steps from the smallest to the largest channel; step and smallest in fp16.
void through_steps(std::span<float> value, int bits);

// The nearest number of FP8 E4M3, ties to even; beyond the largest (448) that one.
[[nodiscard]] float round_e4m3(float x);

}  // namespace kvspan::policies
