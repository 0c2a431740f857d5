// SPDX-License-Identifier: Apache-2.0
// The hot loops of the replay: logits, softmax terms, masked sums, column sums, weighted values.
// SIMD by runtime dispatch (Highway): one binary runs on every x86-64 and Arm machine.
//
// Determinism: every result element is summed in one fixed order that depends on token indices
// only, never on block shape, threads, or what else is computed (equal keys get equal logits, a
// masked term adds 0). Targets with fused multiply-add (AVX2, AVX-512, NEON) agree bit for bit; the
// others differ from them in the last bits.
//
// Speed: buffers on cache lines; row strides that are no multiple of 4096 bytes; 32 rows and more
// per call when the panels do not fit the L2 cache.
#pragma once

#include <cstdint>
#include <string>

namespace kvspan::kernels {

inline constexpr std::int64_t kPanel = 64;  // keys in a packed panel; row buffers are padded to it

[[nodiscard]] inline std::int64_t padded(std::int64_t keys) {
  return (keys + kPanel - 1) / kPanel * kPanel;
}

// Name of the SIMD target in use ("AVX3_SPR", "AVX2", ...).
[[nodiscard]] std::string target_name();

// Packs keys for logits().
//   keys    [tokens, dim] with `stride` floats from one token to the next
//   panels  [padded(tokens) / kPanel, dim, kPanel], missing keys are zero
void pack_keys(const float* keys, std::int64_t tokens, std::int64_t stride, int dim, float* panels);

// Scaled, soft-capped logits of `rows` queries against the keys of panels [panel_begin, panel_end):
//   out[r][j] = cap(scale * sum_i q[r][i] * key[j][i])
//   cap(x)    = softcap * tanh(x / softcap), or x if softcap is 0
//   q       rows pointers to [dim]
//   out     rows pointers to [padded keys], indexed by the key's own number
// The sum over i runs in order i = 0, 1, ... for every element, whatever the block shape.
void logits(const float* const* q, std::int64_t rows, int dim, const float* panels,
            std::int64_t panel_begin, std::int64_t panel_end, float scale, float softcap,
            float* const* out);

// In place: z[begin, end) becomes exp(z - max), everything else in [0, padded_end) becomes 0, as do
// terms below 1.2e-38.
// REQUIRES: begin < end <= padded_end, padded_end % kPanel == 0.
// Returns the maximum (not finite if a logit is NaN or +infinity; the terms then mean nothing) and
// the sum of the terms, in masked_sum's order.
struct Softmax {
  float max;
  double sum;
};
Softmax softmax_terms(float* z, std::int64_t begin, std::int64_t end, std::int64_t padded_end);

// sum_j terms[j] * mask[j] over [0, padded_end): fp32 over the keys l, l + 16, l + 32, l + 48 of a
// panel, fp64 over panels, then over l = 0 ... 15.
//   mask    [padded_end] of 0 or 1
[[nodiscard]] double masked_sum(const float* terms, const float* mask, std::int64_t padded_end);

// sums[r] = masked_sum(terms[r], mask, padded_end), reading the mask once; the same bits.
//   terms   rows pointers to [padded_end];  sums [rows]
void masked_sums(const float* const* terms, std::int64_t rows, const float* mask,
                 std::int64_t padded_end, double* sums);

// Column sums of probabilities: for r = 0, 1, ...: sums[j] += (double)terms[r][j] * inverse[r], for
// the keys with mask[j] != 0.
//   terms   rows pointers to [padded_end];  inverse [rows];  sums, mask [padded_end]
void add_columns(const float* const* terms, const double* inverse, std::int64_t rows,
                 const float* mask, std::int64_t padded_end, double* sums);

inline constexpr std::int64_t kValueChunk = 256;

// Weighted sums of values: out[r][i] = sum over entries e of terms[r][e] * values[e * stride + i],
// in the order of `entries`, fp32 over kValueChunk entries, fp64 across.
//   terms   rows pointers to [keys];  entries [count], ascending;  out rows pointers to [dim]
void weighted_values(const float* const* terms, std::int64_t rows, const std::int32_t* entries,
                     std::int64_t count, const float* values, std::int64_t stride, int dim,
                     double* const* out);

// A row over keys that are held altered: in place, z[e] becomes exp(z[e] - max) for every entry.
//   z       [keys] logits of the held keys;  full [keys] terms of the row's own, exp(logit -
//           full_max);  entries [count], ascending
// REQUIRES: count >= 1.
struct HeldTerms {
  float max;   // of z
  double sum;  // of the new terms
  // Sums of full[e] |own logit - z[e]| and of full[e].
  double distance, weight;
};
[[nodiscard]] HeldTerms held_terms(const std::int32_t* entries, std::int64_t count,
                                   const float* full, double full_max, float* z);

// Dot products in double, in order of i: out[j] = sum_i x[j][i] * y[i], and of x[j] with itself.
//   x       [count][dim] with `stride` floats from one to the next (dots: dim);  y [dim]
//   out     [count]
void dots(const float* x, std::int64_t count, int dim, const double* y, double* out);
void squared_norms(const float* x, std::int64_t count, std::int64_t stride, int dim, double* out);

}  // namespace kvspan::kernels
