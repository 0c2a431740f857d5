// SPDX-License-Identifier: Apache-2.0
// What InfiniGen keeps on the device to guess with: a few columns of skewed keys.
#pragma once

#include <span>
#include <vector>

#include "sim/policy/policy.h"

namespace kvspan::policies {

// Skewed queries and keys of one KV head: the `columns` that the prompt's queries use most.
class PartialKeys {
 public:
  PartialKeys(const View& view, int kv_head, RowIndex prompt, int columns);
  // Takes in the keys up to `end`.
  void extend(const View& view, TokenIndex end);
  // s of the entries, scaled as logits are.
  void score(std::span<const float> q, double scale, std::span<const TokenIndex> entries,
             std::span<double> out) const;

 private:
  [[nodiscard]] float turn(std::size_t column, const float* x) const;
  int kv_head_;
  int dim_;
  TokenIndex tokens_ = 0;
  std::vector<float> skew_;                  // [columns][dim]
  std::vector<std::vector<float>> columns_;  // [columns][tokens so far]
};

}  // namespace kvspan::policies
