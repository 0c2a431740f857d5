// SPDX-License-Identifier: Apache-2.0
// What policies read of a whole trace at once, beyond what a View shows them: vectors of many rows,
// rows of the full cache's attention.
#pragma once

#include <span>
#include <vector>

#include "sim/policies/shared/groups.h"
#include "sim/policies/shared/whole_trace.h"

namespace kvspan::policies {

// q ('q'), k ('k') or v ('v') of rows [begin, end) of one stored layer, widened.
struct LayerVectors {
  RowIndex begin = 0;
  int heads = 0, dim = 0;
  std::vector<float> data;  // [rows, heads, dim]
  [[nodiscard]] std::span<const float> at(RowIndex row, int head) const {
    const auto n = static_cast<std::size_t>(dim);
    const auto i = static_cast<std::size_t>((row - begin) * heads + head);
    return {data.data() + i * n, n};
  }
};
// before_rope: the rotary embedding undone; without rope_* fields vectors are taken as they are.
[[nodiscard]] LayerVectors read_vectors(const Trace& trace, int layer, char which, RowIndex begin,
                                        RowIndex end, bool before_rope = false);

}  // namespace kvspan::policies
