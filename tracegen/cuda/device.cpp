// SPDX-License-Identifier: Apache-2.0
#include "tracegen/cuda/device.h"

#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan::tracegen {
namespace {

double mib(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

}  // namespace

void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  throw DeviceError(fmt::format("CUDA: {} failed: {}",
                                std::string(call).substr(0, std::string(call).find('(')),
                                cudaGetErrorString(status)));
}

std::string device_name() {
  int device = 0;
  const cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess)
    throw DeviceError(fmt::format("no usable CUDA device: {}; --device cpu needs none",
                                  cudaGetErrorString(status)));
  cudaDeviceProp properties{};
  KVSPAN_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  return properties.name;
}

CudaMemory::CudaMemory(MemoryKind kind, std::int64_t bytes, const std::string& purpose)
    : kind_(kind), bytes_(bytes) {
  if (bytes == 0) return;
  const auto size = static_cast<std::size_t>(bytes);
  const cudaError_t status = kind == MemoryKind::device
                                 ? cudaMalloc(&data_, size)
                                 : cudaHostAlloc(&data_, size, cudaHostAllocDefault);
  if (status == cudaSuccess) return;
  cudaGetLastError();  // out of memory is not sticky: the next call must not see it
  std::string there = "the host has no more pinned memory";
  std::size_t free = 0, total = 0;
  if (kind == MemoryKind::device && cudaMemGetInfo(&free, &total) == cudaSuccess)
    there =
        fmt::format("{} has {:.1f} MiB free of {:.1f} MiB", device_name(),
                    mib(static_cast<std::int64_t>(free)), mib(static_cast<std::int64_t>(total)));
  throw DeviceError(fmt::format("{:.1f} MiB are needed for {}, but {} ({})", mib(bytes), purpose,
                                there, cudaGetErrorString(status)));
}

CudaMemory& CudaMemory::operator=(CudaMemory&& other) noexcept {
  if (this == &other) return *this;
  release();
  kind_ = other.kind_;
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

void CudaMemory::release() noexcept {
  if (data_ == nullptr) return;
  if (kind_ == MemoryKind::device)
    cudaFree(data_);
  else
    cudaFreeHost(data_);
  data_ = nullptr;
}

CudaStream::CudaStream() {
  KVSPAN_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}
CudaStream::~CudaStream() { cudaStreamDestroy(stream_); }

CudaEvent::CudaEvent() {
  KVSPAN_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
}
CudaEvent::~CudaEvent() { cudaEventDestroy(event_); }
void CudaEvent::record(const CudaStream& stream) {
  KVSPAN_CUDA_CHECK(cudaEventRecord(event_, stream.get()));
}
void CudaEvent::wait() const { KVSPAN_CUDA_CHECK(cudaEventSynchronize(event_)); }
void CudaEvent::hold(const CudaStream& stream) const {
  KVSPAN_CUDA_CHECK(cudaStreamWaitEvent(stream.get(), event_, 0));
}

}  // namespace kvspan::tracegen
