// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/cuda/memory.h"

#include <cuda_runtime.h>
#include <map>

#include <fmt/format.h>

#include "gpu_replay/cuda/check.h"
#include "gpu_replay/cuda/driver.h"
#include "sim/base/text.h"

namespace kvspan::gpu_replay {

void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  const std::string name = call;
  throw DeviceError(fmt::format("CUDA: {} failed: {}", name.substr(0, name.find('(')),
                                cudaGetErrorString(status)));
}

namespace {

std::int64_t free_bytes() {
  std::size_t free = 0, total = 0;
  KVSPAN_REPLAY_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<std::int64_t>(free);
}

// Pointers of the runtime's calls.
template <typename Number>
void* as_pointer(Number address) {
  return reinterpret_cast<void*>(static_cast<std::uintptr_t>(address));
}

// What both kinds have in common: a stream that nobody else knows, and what it moves.
class StreamMemory : public DeviceMemory {
 public:
  StreamMemory(std::int64_t granule, std::int64_t limit) : DeviceMemory(granule, limit) {
    KVSPAN_REPLAY_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~StreamMemory() override { cudaStreamDestroy(stream_); }

  [[nodiscard]] std::string name() const override {
    int device = 0;
    cudaDeviceProp properties{};
    KVSPAN_REPLAY_CHECK(cudaGetDevice(&device));
    KVSPAN_REPLAY_CHECK(cudaGetDeviceProperties(&properties, device));
    return properties.name;
  }

  void write(Address to, std::span<const std::byte> bytes) override {
    transfer(as_pointer(to), bytes.data(), bytes.size(), cudaMemcpyHostToDevice);
    wait();
  }
  void read(Address from, std::span<std::byte> bytes) const override {
    transfer(bytes.data(), as_pointer(from), bytes.size(), cudaMemcpyDeviceToHost);
    wait();
  }
  void copy(Address from, Address to, std::int64_t bytes) override {
    // What overlaps goes in steps that do not: a copy down by `step` bytes at a time.
    const std::int64_t step = from > to ? from - to : bytes;
    for (std::int64_t at = 0; at < bytes; at += step) {
      const std::int64_t size = std::min(step, bytes - at);
      transfer(as_pointer(to + at), as_pointer(from + at), static_cast<std::size_t>(size),
               cudaMemcpyDefault);
    }
    wait();
  }

 protected:
  [[nodiscard]] std::int64_t device_free() const override { return free_bytes(); }
  [[nodiscard]] cudaStream_t stream() const { return stream_; }
  // What is given to the stream may be gone after the call.
  void wait() const { KVSPAN_REPLAY_CHECK(cudaStreamSynchronize(stream_)); }

 private:
  void transfer(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) const {
    KVSPAN_REPLAY_CHECK(cudaMemcpyAsync(to, from, bytes, kind, stream_));
  }
  cudaStream_t stream_ = nullptr;
};

class MappedMemory final : public StreamMemory {
 public:
  MappedMemory(std::int64_t granule, std::int64_t limit)
      : StreamMemory(granule, limit), free_at_first_(free_bytes()) {}
  ~MappedMemory() override {
    for (const auto& [begin, bytes] : ranges_) mapping_driver().unreserve(begin, bytes);
  }
  [[nodiscard]] bool maps() const override { return true; }
  // Others may use the device, too: an estimate.
  [[nodiscard]] std::int64_t measured() const override { return free_at_first_ - free_bytes(); }

  [[nodiscard]] Address reserve(std::int64_t bytes) override {
    const std::int64_t size = rounded(bytes);
    const Address begin = mapping_driver().reserve(size);
    ranges_[begin] = size;
    return begin;
  }
  void unreserve(Address begin) override {
    mapping_driver().unreserve(begin, ranges_.at(begin));
    ranges_.erase(begin);
  }

 protected:
  bool do_back(Address begin) override { return mapping_driver().map(begin, granule()); }
  void do_give_back(Address begin) override { mapping_driver().unmap(begin, granule()); }

 private:
  std::int64_t free_at_first_;
  std::map<Address, std::int64_t> ranges_;  // bytes, by begin
};

// A pool of our own, so that nothing else counts, with the driver's policy: what is free when the
// stream is waited for may go back to the device.
class PooledMemory final : public StreamMemory {
 public:
  explicit PooledMemory(std::int64_t limit) : StreamMemory(kAlignment, limit) {
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;  // device memory, not managed
    properties.location.type = cudaMemLocationTypeDevice;
    KVSPAN_REPLAY_CHECK(cudaGetDevice(&properties.location.id));
    KVSPAN_REPLAY_CHECK(cudaMemPoolCreate(&pool_, &properties));
  }
  ~PooledMemory() override {
    cudaStreamSynchronize(stream());
    cudaMemPoolDestroy(pool_);
  }
  [[nodiscard]] bool maps() const override { return false; }
  // What the pool has taken from the device.
  [[nodiscard]] std::int64_t measured() const override {
    std::uint64_t bytes = 0;
    KVSPAN_REPLAY_CHECK(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemCurrent, &bytes));
    return static_cast<std::int64_t>(bytes);
  }

 protected:
  Address do_allocate(std::int64_t bytes) override {
    void* begin = nullptr;
    const cudaError_t status =
        cudaMallocFromPoolAsync(&begin, static_cast<std::size_t>(bytes), pool_, stream());
    if (status == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();  // it is no error of what follows
      return 0;
    }
    check_cuda(status, "cudaMallocFromPoolAsync");
    wait();  // other streams read and write it
    return static_cast<Address>(reinterpret_cast<std::uintptr_t>(begin));
  }
  void do_release(Address begin) override {
    KVSPAN_REPLAY_CHECK(cudaFreeAsync(as_pointer(begin), stream()));
  }

 private:
  static constexpr std::int64_t kAlignment = 512;
  cudaMemPool_t pool_ = nullptr;
};

}  // namespace

std::unique_ptr<DeviceMemory> make_cuda_memory(std::int64_t granule, std::int64_t limit) {
  const std::int64_t least = mapping_driver().granule();
  if (granule % least != 0) {
    throw ConfigError(
        fmt::format("granule: found {}, expected a multiple of {}, which the device "
                    "maps at least",
                    human_bytes(granule), human_bytes(least)));
  }
  return std::make_unique<MappedMemory>(granule == 0 ? least : granule, limit);
}

std::unique_ptr<DeviceMemory> make_cuda_pool(std::int64_t limit) {
  return std::make_unique<PooledMemory>(limit);
}

}  // namespace kvspan::gpu_replay
