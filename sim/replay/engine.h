// SPDX-License-Identifier: Apache-2.0
// The engine: the only loop. It walks layers and blocks of rows, computes each block of attention
// once, shows it to every policy of the run, and writes one ledger a policy.
//
//   for each layer (several in flight)
//     for each block of rows, cut where prefill passes end
//       softmax terms of the block's rows that anybody needs      parallel over KV heads
//       for each policy: attend, and decide where a pass ends     parallel over policies
//
// Results are bit-identical for any number of threads and any set of other policies in the run.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "sim/ledger/ledger.h"
#include "sim/policy/registry.h"
#include "sim/replay/fidelity.h"
#include "sim/trace/trace.h"

namespace kvspan {

struct EngineOptions {
  RowIndex prompt = 0;    // 0: as the trace says
  RowIndex evict_at = 0;  // 0: at the prompt's end
  RowIndex chunk = 0;     // prefill chunk, tokens; 0: one pass
  std::int64_t kv_bytes = 2;
  std::uint64_t seed = 0;
  bool fidelity = true;
  RowIndex fidelity_rows = 0;   // per phase; 0: all
  bool output_error = true;     // where the trace has v
  bool keep_scores = false;     // score and rank of every eviction, in the ledger
  std::int64_t keep_reads = 0;  // bytes of Ledger::reads of one policy at most; 0: none
  int threads = 0;              // 0: all cores
  RowIndex block_rows = 0;      // 0: chosen by size (tests only)
  std::function<void(double done)> progress;  // in [0, 1], from any thread
  std::function<bool()> cancelled;            // polled; true ends the replay with Interrupted
};

struct Replay {
  Ledger ledger;
  std::optional<Fidelity> fidelity;
  std::optional<std::int64_t> undecided;  // score traces only
};

// The geometry that policies are bound to for a replay of `trace`.
// Errors: ConfigError when prompt, evict_at or chunk do not fit the trace.
[[nodiscard]] Geometry geometry_of(const Trace& trace, const EngineOptions& options);

// Errors: TraceError naming what `policy` reads and the trace lacks.
void check_policy(const Trace& trace, const Policy& policy, const EngineOptions& options);

// How a replay will be laid out, and the anonymous memory it may use at most.
struct MemoryPlan {
  int layers_in_flight = 1;
  RowIndex block_rows = 0;
  std::int64_t bytes = 0;
};
[[nodiscard]] MemoryPlan plan_memory(const Trace& trace, const std::vector<Policy>& policies,
                                     const EngineOptions& options);

// Errors: TraceError naming the field when the trace lacks what a policy reads; PolicyError when a
// policy breaks its contract; Interrupted.
[[nodiscard]] std::vector<Replay> replay(const Trace& trace, const std::vector<Policy>& policies,
                                         const EngineOptions& options);

}  // namespace kvspan
