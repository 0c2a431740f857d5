// SPDX-License-Identifier: Apache-2.0
// How a replay is laid out in memory, and what it may use at most.
#pragma once

#include <cstdint>
#include <vector>

#include "sim/replay/requirements.h"

namespace kvspan {

struct MemoryPlan {
  int layers_in_flight = 1;
  RowIndex block_rows = 0;
  std::int64_t bytes = 0;  // anonymous memory at most
};
[[nodiscard]] MemoryPlan plan_memory(const Trace& trace, const Lineup& lineup,
                                     const EngineOptions& options);
// The same of policies that are bound to geometry_of(trace, options). Errors: as of line_up().
[[nodiscard]] MemoryPlan plan_memory(const Trace& trace, const std::vector<Policy>& policies,
                                     const EngineOptions& options);

// ---- Sizes that the plan counts and the engine allocates ----------------------------------------

[[nodiscard]] int threads_of(const EngineOptions& options);

// Outputs are compared where the trace has v.
[[nodiscard]] bool wants_values(const Trace& trace, const EngineOptions& options);

// Floats from one row of terms to the next: rows a multiple of 4 KiB apart would fight for the same
// cache sets.
[[nodiscard]] std::int64_t row_stride(std::int64_t tokens);

// Bytes of one sampled row of Ledger::reads, and how many rows fit; none where nobody selects.
struct ReadsSample {
  std::int64_t row_bytes = 0, rows = 0;
};
[[nodiscard]] bool selects(const Policy& policy);
[[nodiscard]] ReadsSample sample_of_reads(const TraceMeta& meta, const Policy& policy,
                                          const EngineOptions& options);

// One policy on all layers at once, its ledger and figures, beside the trace.
[[nodiscard]] std::int64_t live_lane_bytes(const TraceMeta& meta, const Policy& policy,
                                           const Needs& needs, RowIndex prompt);

}  // namespace kvspan
