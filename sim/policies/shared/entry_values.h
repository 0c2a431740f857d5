// SPDX-License-Identifier: Apache-2.0
// What a whole trace says the entries of one stored layer are worth, [kv_heads][tokens].
#pragma once

#include <cstddef>
#include <vector>

#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {

using HeadValues = std::vector<std::vector<float>>;

// Largest probability that a key receives in rows [max(key + gap, begin), end) of the full cache,
// over the query heads of its group; out [kv_heads][end], 0 where there is no such row.
[[nodiscard]] HeadValues largest_future(const Trace& trace, int layer, RowIndex gap, RowIndex begin,
                                        RowIndex end);

// The squared change of later rows' outputs if this entry alone were missing: sum over rows behind
// the window of (a / (1 - a))^2 |v - o|^2, divided by 1 - min(1, window / (N - i)).
[[nodiscard]] HeadValues output_change(const Trace& trace, int layer, RowIndex window);

inline constexpr TokenCount kAdaSinks = 4;
// AdaEA++: attention of a Gaussian query per query head: mean and covariance before rotary of the
// first half of the prompt, rotated to the middle of it. Ranks among the first `outside` entries,
// the largest of the group; infinity for the sinks.
[[nodiscard]] HeadValues expected_attention(const Trace& trace, int layer, RowIndex prompt,
                                            std::ptrdiff_t outside);

}  // namespace kvspan::policies
