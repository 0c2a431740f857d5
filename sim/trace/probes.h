// SPDX-License-Identifier: Apache-2.0
// Rows that a model was asked beside the sequence of its trace, as KVzip asks: after the first `at`
// tokens it read some more, which ask for tokens before them again, and forgot these. Format:
// traces/README.md, "Replayed rows".
#pragma once

#include <cstdint>
#include <vector>

#include "sim/trace/file_checks.h"
#include "sim/trace/trace.h"

namespace kvspan {

// One pass of such rows.
struct Probe {
  std::int64_t begin = 0, end = 0;  // tokens that it asks for
  std::int64_t at = 0;  // tokens that were read before it: the position of its first row
  std::int64_t rows = 0;
  std::int64_t first = 0;  // its first row in the tensors
};

// What is stored of these rows in one layer, post-rotary.
struct ProbeLayer {
  const TensorView* q = nullptr;     // [rows, query_heads, head_dim]
  const TensorView* k = nullptr;     // [rows, kv_heads, head_dim]
  const TensorView* norm = nullptr;  // [rows] of what the projections read, L2; may be null
};

// Empty: the trace has none. REQUIRES: an open trace.
[[nodiscard]] std::vector<Probe> probes_of(const Trace& trace);
[[nodiscard]] ProbeLayer probe_layer(const Trace& trace, int layer);

// Private to Trace. Errors: TraceError naming the key, or the tensor.
void check_probes(const TensorSet& set, const TraceMeta& meta, bool qkv, const std::string& file);

}  // namespace kvspan
