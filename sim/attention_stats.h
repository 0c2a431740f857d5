// SPDX-License-Identifier: Apache-2.0
// Statistics of a trace's full-cache attention that policies fit themselves on before a replay.
#pragma once

#include <cstdint>
#include <vector>

namespace kvspan {

class Trace;

// Mean over rows [tokens / 2, tokens) of the probability outside the first `sinks` tokens and the
// newest `window` tokens (the row's own included).  Returns [layers][query_heads].
// Errors: TraceError when a score trace lacks those rows.
[[nodiscard]] std::vector<std::vector<double>> mean_mass_outside(const Trace& trace,
                                                                 std::int64_t sinks,
                                                                 std::int64_t window);

}  // namespace kvspan
