// SPDX-License-Identifier: Apache-2.0
// A ledger replayed on the memory of a device, pass by pass: what a pool asks for, what its layout
// takes, what the device backs, over time; and the simulator's figures beside it.
//
//   payload <= used <= backed     bytes of the entries; of the blocks they lie in; of the granules
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "gpu_replay/replay/steps.h"
#include "sim/ledger/metrics.h"

namespace kvspan::gpu_replay {

// Memory ran out: a result.
struct Shortage {
  RowIndex row = 0;
  int layer = 0;
  std::int64_t asked = 0, free = 0;  // bytes
};

// One instant of a replay.
struct Moment {
  RowIndex row = 0;
  Usage kv;
  std::int64_t state = 0;          // bytes of the policy beside its entries
  std::int64_t backed = 0;         // bytes of granules
  std::int64_t measured = -1;      // what the device says; -1: not asked then
  std::int64_t table_entries = 0;  // of block tables
  [[nodiscard]] std::int64_t total() const { return kv.used() + state; }
};

struct MemoryReplay {
  std::string layout;
  PeakBytes predicted;                   // the simulator's
  std::int64_t predicted_byte_rows = 0;  // sum over rows of kv + overhead
  PeakBytes peak;                        // of what the pool used, by the same rules
  Moment at_peak;                        // used most
  Moment most_backed;                    // backed most; measured there
  // Sums over rows, as predicted_byte_rows; null where a prefill is layer by layer.
  std::optional<std::int64_t> byte_rows, backed_byte_rows, payload_byte_rows;
  std::int64_t moved = 0;  // bytes copied inside the device
  std::int64_t granule = 0;
  std::optional<Shortage> shortage;  // the rest is of the rows before it
  std::vector<Moment> rows;          // [tokens]; of a layerwise pass the last row's, only
  // Entries whose bytes were read back at the end and were not what was written, and entries that
  // the pool holds then and the ledger does not, or the reverse. 0 unless something is wrong.
  std::int64_t wrong_bytes = 0, wrong_deaths = 0;
};

struct MemoryReplaySettings {
  bool layerwise = false;
  // Writes a stamp into every entry, and reads all of them at the end.
  bool stamps = true;
  std::function<void(double done)> progress;
  std::function<bool()> cancelled;
};

// Errors: DeviceError; Interrupted.
[[nodiscard]] MemoryReplay replay_memory(const Ledger& ledger, const std::string& layout,
                                         DeviceMemory& memory,
                                         const MemoryReplaySettings& settings);

}  // namespace kvspan::gpu_replay
