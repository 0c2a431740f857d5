// SPDX-License-Identifier: Apache-2.0
// How many sequences like this one a device holds: by putting them there until it is full.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "gpu_replay/replay/memory_replay.h"

namespace kvspan::gpu_replay {

// As predict reckons, and as continuous batching serves: one sequence goes through its prefill
// while the others wait where they hold most in decode.
struct Fill {
  std::string layout;
  std::int64_t sequences = 0;  // that were there at the same time
  std::int64_t predicted = 0;  // largest B with (B - 1) waiting + max(prefill, waiting) <= limit
  std::int64_t limit = 0;      // bytes
  std::int64_t backed = 0;     // when no more fitted
  std::int64_t used = 0;       // of it, by those that fitted
  bool stopped = false;        // kMostSequences were reached
};
inline constexpr std::int64_t kMostSequences = 4096;

// `predicted`: of sequences that hold so many bytes in their prefill, and while they wait.
[[nodiscard]] std::int64_t most_sequences(std::int64_t limit, std::int64_t prefill,
                                          std::int64_t waiting);

// Without a limit all that the device has is filled. Errors: DeviceError; Interrupted.
[[nodiscard]] Fill fill_memory(const Ledger& ledger, const std::string& layout,
                               DeviceMemory& memory, const MemoryReplaySettings& settings);

}  // namespace kvspan::gpu_replay
