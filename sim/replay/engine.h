// SPDX-License-Identifier: Apache-2.0
// The engine: the only loop. It walks layers and blocks of rows, computes each block of attention
// once, shows it to every policy of the run, and writes one ledger a policy.
//
//   for each layer (several in flight)
//     for each block of rows, cut where prefill passes end
//       softmax terms of the block's rows that anybody needs      parallel over KV heads
//       for each policy: attend, and decide where a pass ends     parallel over policies
//
// Before it, the same walk up to the evict point for policies whose budget is coupled over layers:
// what the layers show there is shared out, and the replay looks it up (policy/model_budget.h).
//
// Results are bit-identical for any number of threads and any set of other policies in the run.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "sim/ledger/ledger.h"
#include "sim/replay/fidelity.h"
#include "sim/replay/requirements.h"

namespace kvspan {

struct Replay {
  Ledger ledger;
  std::optional<Fidelity> fidelity;
  std::optional<std::int64_t> undecided;  // score traces only
};

// REQUIRES: the lineup is of this trace and of these options' geometry.
// Errors: PolicyError when a policy breaks its contract; Interrupted; TraceError on values that are
// not numbers.
[[nodiscard]] std::vector<Replay> replay(const Trace& trace, const Lineup& lineup,
                                         const EngineOptions& options);

// The same of policies that are bound to geometry_of(trace, options).
// Errors: TraceError naming the field when the trace lacks what a policy reads, too.
[[nodiscard]] std::vector<Replay> replay(const Trace& trace, const std::vector<Policy>& policies,
                                         const EngineOptions& options);

}  // namespace kvspan
