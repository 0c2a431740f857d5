// SPDX-License-Identifier: Apache-2.0
// The score pass in Eigen, compiled once per instruction set, to compare the kernels with.
#pragma once

#include <cstdint>

namespace kvspan::bench {

inline constexpr int kFmaChains = 12;  // 4 cycles of latency times 2 pipes; fits 16 registers

struct EigenTwin {
  // `steps` times kFmaChains independent FMAs of vectors; returns the floats of a vector.
  int (*fma_loop)(std::int64_t steps);
  // z[rows, tokens] = q[rows, dim] * keys[tokens, dim]^T, all row-major; z has row stride z_stride.
  void (*logits)(const float* q, std::int64_t rows, int dim, const float* keys, std::int64_t tokens,
                 float* z, std::int64_t z_stride);
  // In place: exp(z - max) over z[0, count). Returns the sum.
  float (*softmax)(float* z, std::int64_t count);
  // out[rows, dim] = terms[rows, tokens] * values[tokens, dim]
  void (*values)(const float* terms, std::int64_t rows, std::int64_t tokens,
                 std::int64_t terms_stride, const float* values, int dim, float* out);
};

extern const EigenTwin kEigenAvx2;    // only where the machine has AVX2 and FMA
extern const EigenTwin kEigenAvx512;  // only where it has AVX-512 F, DQ, BW, VL

}  // namespace kvspan::bench
