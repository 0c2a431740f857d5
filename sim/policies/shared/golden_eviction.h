// SPDX-License-Identifier: Apache-2.0
// Golden Eviction, the label of ForesightKV's training.
#pragma once

#include <cstddef>
#include <vector>

#include "sim/policies/shared/fitted.h"

namespace kvspan::policies {

// [blocks][kv_heads][end]
using Blocks = std::vector<std::vector<std::vector<float>>>;
// The label: of blocks of `interval` rows from `origin` on, the largest mean probability that a key
// has in one block or a later one; the mean is over the rows of the block (the last one padded with
// zeros) and the query heads of the group.
[[nodiscard]] Blocks largest_block_means(const Trace& trace, int layer, RowIndex origin,
                                         RowIndex end, RowIndex interval);

// A decision of Golden Eviction.
struct GoldenChoice {
  RowIndex row = 0;
  std::vector<TokenIndex> candidates;
  std::vector<char> drops;   // [candidates]
  std::vector<float> label;  // [candidates]
};

// Which of the candidates leave: the `count` with the smallest labels, the latest of equal ones.
[[nodiscard]] std::vector<char> dropped(const std::vector<float>& label, std::size_t count);

// The decisions of one KV head over rows [0, end), the first of them when `budget` and an interval
// are held.
[[nodiscard]] std::vector<GoldenChoice> golden_choices(const Blocks& future, std::size_t head,
                                                       RowIndex end, RowIndex interval,
                                                       TokenCount budget);

// At most six multiples of `interval` below `end`, evenly spread up to the last one: where
// prompts may end that leave something to choose and something to learn from.
[[nodiscard]] std::vector<RowIndex> prompt_ends(RowIndex end, RowIndex interval);

// The first decision after a prompt of `row` tokens, a multiple of the interval. Of the candidates
// stays the share that the budget leaves of those of all rows.
[[nodiscard]] GoldenChoice first_choice(const Blocks& future, std::size_t head, RowIndex row,
                                        RowIndex end, RowIndex interval, TokenCount budget);

}  // namespace kvspan::policies
