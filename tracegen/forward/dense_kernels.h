// SPDX-License-Identifier: Apache-2.0
// The element-wise loops of the forward pass, and the dense product that it rests on. SIMD by
// runtime dispatch (Highway; oneDNN's own for the product). Every function is serial and has one
// fixed order of operations for a given shape, so results do not depend on threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvspan::tracegen::kernels {

[[nodiscard]] std::string target_name();  // of Highway: "AVX3", "AVX2", ...

// c = a b (beta 0) or c + a b (beta 1), fp32. Two equal columns of b, or rows of a, may get results
// that differ in the last bits: on some machines the library sums the last ones in another order.
// So nothing may rest on ties of this product; logits that keys are ranked by are
// sim/attention/kernels.h's.
//   a  [m, k], rows lda apart;  c  [m, n], rows ldc apart
//   b  [k, n], or [n, k] with b_transposed, rows ldb apart
struct Gemm {
  std::int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;
  std::int64_t lda = 0;
  const float* b = nullptr;
  std::int64_t ldb = 0;
  bool b_transposed = false;
  float beta = 0;
  float* c = nullptr;
  std::int64_t ldc = 0;
};
void gemm(const Gemm& g);

[[nodiscard]] float maximum(const float* x, std::int64_t count);  // -infinity for none
// x = exp(x - max), in place; returns the sum. -infinity gives 0.
[[nodiscard]] float exp_minus(float* x, std::int64_t count, float max);
// Sum of exp(x - max): fp32 over 1,024 elements, fp64 across.
[[nodiscard]] double sum_exp(const float* x, std::int64_t count, float max);
[[nodiscard]] bool all_finite(const float* x, std::int64_t count);
void scale(float* x, std::int64_t count, float factor);
// sums[i] += x[i]
void add_to(const float* x, std::int64_t count, double* sums);
// Appends {base + i, x[i]} for every x[i] > threshold, in order.
struct Candidate {
  std::int32_t key;
  float logit;
};
void append_above(const float* x, std::int64_t count, float threshold, std::int32_t base,
                  std::vector<Candidate>& out);

// out = x / sqrt(mean(x^2) + eps) * weight; out may be x. The mean is summed in fp64 across
// vectors.
void rms_norm(const float* x, const float* weight, std::int64_t count, double eps, float* out);
// gate = gate / (1 + exp(-gate)) * up
void silu_multiply(float* gate, const float* up, std::int64_t count);
// x += y
void add(float* x, const float* y, std::int64_t count);
// Rotary embedding of one head, layout half: pairs (i, i + pairs).
//   cosine, sine  [pairs]
void rotate_half(float* x, const float* cosine, const float* sine, std::int64_t pairs);

}  // namespace kvspan::tracegen::kernels
