// SPDX-License-Identifier: Apache-2.0
// What every query head of a group selects, as one score: SAGE-KV's lists and how they share
// entries.
#pragma once

#include <cstdint>
#include <span>

#include "sim/policies/shared/groups.h"

namespace kvspan::policies {

enum class Duplicates : std::uint8_t { fill, join };

// The heads of a group pick by the probabilities of the prompt's last row, `each` entries a head.
//   fill   minus the turn in which an entry is first taken: the best of every head, then the second
//          of every head, ...
//   join   above 0 where any head has the entry among its best
class Turns final : public Scorer {
 public:
  Turns(Duplicates duplicates, TokenCount each) : duplicates_(duplicates), each_(index(each)) {}
  Needs needs() const override { return {.last_rows = 1}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  Duplicates duplicates_;
  std::size_t each_;
};

// The sum of the group's logits of the prompt's last row. They are formed in double: errors of fp32
// would decide between sums that are 0 on paper.
class SummedLogits final : public Scorer {
 public:
  SummedLogits(double softcap, RowIndex window) : softcap_(softcap), window_(window) {}
  Needs needs() const override { return {.last_rows = 1, .q = true, .k = true}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  double softcap_;
  RowIndex window_;  // the model's own, 0: none
};

}  // namespace kvspan::policies
