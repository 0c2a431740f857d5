// SPDX-License-Identifier: Apache-2.0
// Statistics of a trace's full-cache attention that policies fit themselves on before a replay.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "sim/attention/layer_scores.h"

namespace kvspan {

class Trace;

// Every row of the full cache's attention of one stored layer, in order; rows [begin, end). For
// fits and for bounds, which read the future. Errors: TraceError when a score trace lacks a row.
//   row     p of key j = terms.terms[j] / (terms.sum + terms.sink)
void for_each_row(
    const Trace& trace, int layer, RowIndex begin, RowIndex end,
    const std::function<void(int query_head, RowIndex row, const RowTerms& terms)>& use);

// Mean over rows [tokens / 2, tokens) of the probability outside the first `sinks` tokens and the
// newest `window` tokens (the row's own included).  Returns [layers][query_heads].
// Errors: TraceError when a score trace lacks those rows.
[[nodiscard]] std::vector<std::vector<double>> mean_mass_outside(const Trace& trace,
                                                                 std::int64_t sinks,
                                                                 std::int64_t window);

}  // namespace kvspan
