// SPDX-License-Identifier: Apache-2.0
// Shared by the brute-force twins: amounts, passes, attention, pooling and picking, in double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "tests/twin/twin.h"

namespace kvspan::twin {

inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Rows [begin, end) of one forward call.
struct Pass {
  int begin = 0, end = 0;
};

[[nodiscard]] inline std::size_t at(int i) { return static_cast<std::size_t>(i); }

// Place of an entry in [layers, heads, tokens].
[[nodiscard]] inline std::size_t flat(const Trace& t, int heads, int layer, int head, int token) {
  return (at(layer) * at(heads) + at(head)) * at(t.tokens) + at(token);
}

// Errors: std::invalid_argument(what) unless `ok`.
void require(bool ok, const char* what);

struct Decimal {
  long long digits = 0, scale = 1;  // digits / scale
};
[[nodiscard]] Decimal parse_decimal(const std::string& text);

// bytes_per_token: of all heads of all layers.
[[nodiscard]] int budget_tokens(const Amount& amount, int point, long long bytes_per_token);

// Chunks of [0, n'), the rest of the prompt as one pass, then one pass per decode row.
[[nodiscard]] std::vector<Pass> make_passes(int chunk, int point, int prompt, int tokens);

// Query heads [first, last) that read a stored head.
struct Readers {
  int first = 0, last = 0;
};
[[nodiscard]] Readers readers(const Trace& t, int heads, int head);

// Rotates x [head_dim] on by `positions`; nothing happens without a rope.
void turn(const Rope& rope, int head_dim, double positions, std::vector<double>& x);

// The logged query of `row`, rotated on by `shift` positions.
[[nodiscard]] std::vector<double> query(const Trace& t, const Layer& layer, int head, int row,
                                        int shift);

// Logits of one query at `position`: -infinity for a key that it may not read.
[[nodiscard]] std::vector<double> raw_logits(const Trace& t, const Layer& layer, int head,
                                             const std::vector<double>& q, int position,
                                             const std::vector<int>& keys);

// Softmax of logits; a sink logit stays in the sum.
[[nodiscard]] std::vector<double> softmax_of(const Layer& layer, int head, std::vector<double> z);

// Softmax of one query at `position` over `keys`; 0 for a key that it may not read (the future,
// or outside the model's window). Scaled, soft-capped, masked; a sink logit stays in the sum.
[[nodiscard]] std::vector<double> softmax(const Trace& t, const Layer& layer, int head,
                                          const std::vector<double>& q, int position,
                                          const std::vector<int>& keys);

// One step of splitmix64.
[[nodiscard]] std::uint64_t mix(std::uint64_t x);

// splitmix64, chained over the keys.
[[nodiscard]] std::uint64_t chain(std::uint64_t seed, std::initializer_list<std::int64_t> keys);

[[nodiscard]] double uniform(std::uint64_t seed, std::initializer_list<std::int64_t> keys);

// 1-D pooling, stride 1. Max ignores the padding, average counts it as zeros.
[[nodiscard]] std::vector<double> pool(const std::vector<double>& x, int kernel, bool max);

// Reduces [query heads][entries] to [entries]; group: mean max sum, anything else is sum.
[[nodiscard]] std::vector<double> reduce(const std::vector<std::vector<double>>& x,
                                         const std::string& group);

// Unequal, and within 1e-5 relative.
[[nodiscard]] bool near_tie(double a, double b);

// Indices into `scores` of all but the best `top`; ties keep the lower index. `near` is set if a
// kept and a lost score differ, but by so little that fp32 may order them the other way.
[[nodiscard]] std::vector<std::size_t> losers(const std::vector<double>& scores, int top,
                                              bool& near);

// NaN of nothing.
[[nodiscard]] double mean(const std::vector<double>& x);

// ||o_active - o_all|| / ||o_all|| of one row. REQUIRES: the layer has v.
[[nodiscard]] double output_error(const Trace& t, const Layer& layer, int kv_head,
                                  const std::vector<int>& all, const std::vector<double>& p_all,
                                  const std::vector<int>& active,
                                  const std::vector<double>& p_active);

}  // namespace kvspan::twin
