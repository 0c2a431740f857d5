// SPDX-License-Identifier: Apache-2.0
// The memory of a GPU, plain and never managed: addresses reserved and granules mapped by the
// driver's virtual memory management, or allocations of a stream-ordered pool. No CUDA syntax.
#pragma once

#include <memory>

#include "gpu_replay/pool/memory.h"

namespace kvspan::gpu_replay {

// granule: 0: the least that the device maps (2 MiB); else a multiple of it. limit: see
// DeviceMemory. Errors: DeviceError without a device, or without a driver that maps memory so;
// ConfigError for a granule that it does not have.
[[nodiscard]] std::unique_ptr<DeviceMemory> make_cuda_memory(std::int64_t granule,
                                                             std::int64_t limit);

// Errors: DeviceError without a device, or one that has no such pools.
[[nodiscard]] std::unique_ptr<DeviceMemory> make_cuda_pool(std::int64_t limit);

}  // namespace kvspan::gpu_replay
