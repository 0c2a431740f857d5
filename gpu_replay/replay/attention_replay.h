// SPDX-License-Identifier: Apache-2.0
// Attention of decode rows over what a policy kept, taken straight from the pool that holds it; and
// what that is of the full cache's.
#pragma once

#include <functional>
#include <string>

#include "gpu_replay/attention/decode_row.h"
#include "gpu_replay/pool/memory.h"
#include "sim/ledger/ledger.h"
#include "sim/trace/trace.h"

namespace kvspan::gpu_replay {

struct AttentionReplay {
  std::string why_not;  // not empty: it stopped, since what is held cannot be read; no figures
  std::string layout;
  Element element = Element::f16;
  RowIndex rows = 0;  // decode rows
  // Means over layers, query heads and rows, as of Fidelity.
  double retained = 0, error = 0;
  // Sums over layers, means over rows.
  double bytes_read = 0, seconds = 0;
};

struct AttentionReplaySettings {
  std::string policy;  // canonical: how its store writes entries; may be empty where all are whole
  std::string layout = "paged16_per_head";
  Element element = Element::f16;
  RowIndex rows = 0;  // 0: all decode rows; else as many as that, evenly spread
  // Attention of one row where the pool lies, and the seconds that it took; empty: on the host.
  std::function<double(const DecodeRow& row, DecodeResult& out)> attend;
  std::function<void(double done)> progress;
  std::function<bool()> cancelled;
};

// Layer by layer, so that one layer's vectors are in memory at a time. The full cache's attention
// is taken in double, of the trace's own vectors.
// REQUIRES: the trace has q, k and v; the ledger is of settings.policy, whose rows read all that is
// held, as it was born or in stored forms; settings.element has the bytes of the ledger's elements.
// Errors: TraceError; OutOfMemory; Interrupted.
[[nodiscard]] AttentionReplay replay_attention(const Trace& trace, const Ledger& ledger,
                                               DeviceMemory& memory,
                                               const AttentionReplaySettings& settings);

}  // namespace kvspan::gpu_replay
