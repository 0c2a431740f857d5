// SPDX-License-Identifier: Apache-2.0
// Dead slots: how well the entries of a head could lie in blocks, given when each lives.
//
//   rows ->   0123456789
//   entry 0   ====           lives [0, 4)
//         1    =========           [1, 10)
//         2     ==
//         3         =====          takes the slot of 0 or 2
//
// Lives are the vertices of an interval graph, with an edge where two overlap: such entries cannot
// share a slot. The graph is perfect, so that as many slots are needed as live at once (a clique),
// and whoever takes the lowest free slot at birth needs no more. Blocks are another matter: one is
// held as long as anything in it lives, so that the least that blocks take over time depends on who
// shares them. That least is hard to find (Flammini et al. 2010, minimal busy time); here it lies
// between a bound and the best of a few placements.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sim/base/types.h"

namespace kvspan::optimum {

struct Life {
  RowIndex birth = 0, death = 0;  // rows [birth, death)
};
// Entry t is born in row t. `deaths` [tokens] rows, each above its index.
[[nodiscard]] std::vector<Life> lives_of(std::span<const std::uint32_t> deaths);

// The largest clique of the graph: also its colours, the slots that are needed.
[[nodiscard]] std::int64_t most_at_once(std::span<const Life> lives);

// [lives] the slot of each; lives that overlap have different ones. Slot s is in block s / size.
using Slots = std::vector<std::int32_t>;

// One after the other, no slot twice: what a paged cache does that appends and moves nothing.
[[nodiscard]] Slots in_order(std::span<const Life> lives);
// The lowest slot that is free: knows no death to come. REQUIRES: births ascend.
[[nodiscard]] Slots first_fit(std::span<const Life> lives);
// The best that is found with deaths known: who lives about as long lies together.
// Cost: O(lives^2), so minutes from some 100,000 on. REQUIRES: births ascend.
[[nodiscard]] Slots best_found(std::span<const Life> lives, std::int64_t block_size);

struct BlockUse {
  std::int64_t most = 0;  // blocks held at once
  std::int64_t rows = 0;  // blocks held, summed over rows
};
[[nodiscard]] BlockUse use_of(std::span<const Life> lives, const Slots& slots,
                              std::int64_t block_size);
// No placement takes fewer, nor one that moves entries to close gaps, which takes just that:
// ceil(alive / block_size) in every row.
[[nodiscard]] BlockUse least_use(std::span<const Life> lives, std::int64_t block_size);

}  // namespace kvspan::optimum
