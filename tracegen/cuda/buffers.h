// SPDX-License-Identifier: Apache-2.0
// What a runner allocates, counted. Private to tracegen/cuda.
#pragma once

#include <cstdint>
#include <string>

#include "tracegen/cuda/attention.h"
#include "tracegen/cuda/device.h"
#include "tracegen/forward/runner.h"

namespace kvspan::tracegen {

inline constexpr std::int64_t kFloatBytes = sizeof(float);

inline std::int64_t element_bytes(DeviceType type) { return type == DeviceType::f32 ? 4 : 2; }

// The same number of floats on both sides of a copy.
struct Mirror {
  CudaMemory host, device;
  [[nodiscard]] float* on_host() const { return host.as<float>(); }
  [[nodiscard]] float* on_device() const { return device.as<float>(); }
};

// One of the two sets of buffers that waves use in turn.
struct Slot {
  Mirror hidden, cosine, sine, q, k, v, prob, index, lse;
  CudaEvent uploaded, computed, downloaded;
};

// `purpose` completes "for ..." in the message. Errors: DeviceError with the sizes.
class Allocations {
 public:
  CudaMemory allocate(MemoryKind kind, std::int64_t bytes, const std::string& purpose);
  // Replaces what is too small; its content is lost.
  void reserve(CudaMemory& memory, std::int64_t bytes, const std::string& purpose);
  void reserve(Mirror& mirror, std::int64_t floats, const std::string& purpose);

  [[nodiscard]] std::int64_t device_bytes() const { return device_bytes_; }
  [[nodiscard]] std::int64_t pinned_bytes() const { return pinned_bytes_; }

 private:
  std::int64_t device_bytes_ = 0, pinned_bytes_ = 0;
};

// Room for `rows` rows of a model, and for what `emit` asks of them.
void reserve_wave(Slot& slot, const ModelSpec& spec, std::int64_t rows, Allocations& memory);
void reserve_scores(Slot& slot, const ModelSpec& spec, std::int64_t rows, const Emit& emit,
                    Allocations& memory);

// Either side of `mirror` to the other.
void copy_mirror(const Mirror& mirror, std::int64_t floats, cudaMemcpyKind kind,
                 const CudaStream& stream);

}  // namespace kvspan::tracegen
