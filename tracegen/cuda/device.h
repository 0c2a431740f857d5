// SPDX-License-Identifier: Apache-2.0
// Owners of what a GPU lends: memory, streams, events. Private to tracegen/cuda.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>
#include <string>

namespace kvspan::tracegen {

// Errors: DeviceError naming the call and what CUDA says about it.
void check_cuda(cudaError_t status, const char* call);

#define KVSPAN_CUDA_CHECK(call) ::kvspan::tracegen::check_cuda((call), #call)

// "NVIDIA H200"; what is free and what there is, for messages. Errors: DeviceError without a
// device.
[[nodiscard]] std::string device_name();

enum class MemoryKind : std::uint8_t { device, pinned };

// Memory of the current device, or of the host, pinned so that copies run beside kernels.
class CudaMemory {
 public:
  CudaMemory() = default;
  // `purpose` completes "for ..." in the message. Errors: DeviceError with the sizes when it does
  // not fit.
  CudaMemory(MemoryKind kind, std::int64_t bytes, const std::string& purpose);
  CudaMemory(CudaMemory&& other) noexcept { *this = std::move(other); }
  CudaMemory& operator=(CudaMemory&& other) noexcept;
  ~CudaMemory() { release(); }

  template <typename T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(data_);
  }
  [[nodiscard]] std::int64_t bytes() const { return bytes_; }

 private:
  void release() noexcept;

  MemoryKind kind_ = MemoryKind::device;
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

class CudaStream {
 public:
  CudaStream();
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  ~CudaStream();
  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaEvent {
 public:
  CudaEvent();
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  ~CudaEvent();
  void record(const CudaStream& stream);
  void wait() const;                          // the host waits
  void hold(const CudaStream& stream) const;  // what `stream` is given from now on waits

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace kvspan::tracegen
