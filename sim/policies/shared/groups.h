// SPDX-License-Identifier: Apache-2.0
// Shared by policies: the numbers of a group's query heads become one set, and arithmetic on
// scores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "sim/policy/policy.h"

namespace kvspan::policies {

// How the query heads of a group are reduced to their KV head. none: one set per query head.
enum class Group : std::uint8_t { mean, max, sum, none };
[[nodiscard]] Group parse_group(const std::string& word);

// Runs `item` for every query head of a stored head and reduces: item(query_head, out) returns
//   slack. out [entries]
double reduce_group(const LayerShape& shape, int head, Group group, std::span<double> out,
                    const std::function<double(int query_head, std::span<double> out)>& item);

// The entries that a row of this pass could read: those of a stored head up to the row itself.
[[nodiscard]] std::span<const TokenIndex> resident_up_to(const View& view, int head, RowIndex row);

// Sums of probabilities, rounded to fp32 for the comparison: two sums of the same terms in another
// order (1/3 + 1/6 against 1/2) then tie, as they do on paper, and ties go to the lower token
// index.
void round_sums(std::span<double> scores);

// Keys, or values, of entries of a KV head.  [entries][dim]
enum class Vectors : std::uint8_t { keys, values };
[[nodiscard]] std::vector<float> vectors_of(const View& view, Vectors which, int kv_head,
                                            std::span<const TokenIndex> entries);

// Squared norms of one layer's keys, or values, as squared_norm() has them. All heads of a token
// are read together, once: vectors of a head lie far apart.
class SquaredNorms {
 public:
  explicit SquaredNorms(Vectors which) : which_(which) {}
  // Of entries of a KV head.  [entries]  REQUIRES: the same layer at every call.
  [[nodiscard]] std::vector<double> of(const View& view, int kv_head,
                                       std::span<const TokenIndex> entries);

 private:
  void take_in(const View& view);
  Vectors which_;
  TokenIndex end_ = 0;                      // tokens before it are known
  std::vector<std::vector<double>> norms_;  // [kv_heads][end_]
};

// Sums in double, in order.
[[nodiscard]] double dot(std::span<const float> a, std::span<const float> b);
[[nodiscard]] double squared_norm(std::span<const float> x);

// One-dimensional pooling with stride 1 and kernel/2 padding: maximum ignores the padding, average
// counts it as zeros and divides by the kernel, as torch does. REQUIRES: kernel odd.
enum class Pool : std::uint8_t { max, avg };
void pool(Pool kind, int kernel, std::span<double> values);

}  // namespace kvspan::policies
