// SPDX-License-Identifier: Apache-2.0
// What the pool's memory asks of a GPU's driver, as an interface: tests stand in for it
// (tests/support/cuda_on_cpu). No CUDA syntax.
#pragma once

#include <cstdint>

#include "gpu_replay/pool/memory.h"

namespace kvspan::gpu_replay {

class MappingDriver {
 public:
  virtual ~MappingDriver() = default;
  // The least that can be mapped, bytes.
  [[nodiscard]] virtual std::int64_t granule() const = 0;
  [[nodiscard]] virtual Address reserve(std::int64_t bytes) = 0;  // Errors: DeviceError
  virtual void unreserve(Address begin, std::int64_t bytes) = 0;
  // Memory of the device behind these addresses, to be read and written by it. False: it has none.
  [[nodiscard]] virtual bool map(Address begin, std::int64_t bytes) = 0;
  virtual void unmap(Address begin, std::int64_t bytes) = 0;
};

// Of the current device; a process has one. Errors: DeviceError where the driver has no such calls.
[[nodiscard]] MappingDriver& mapping_driver();

}  // namespace kvspan::gpu_replay
