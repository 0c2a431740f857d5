// SPDX-License-Identifier: Apache-2.0
// Stands in for gpu_replay/cuda/driver.cpp: addresses that are not mapped fault, fresh memory is
// NaN, and what is mapped counts as the device's.
#include <cstring>
#include <cuda_runtime.h>
#include <sys/mman.h>

#include "gpu_replay/cuda/driver.h"

namespace kvspan::gpu_replay {
namespace {

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

class EmulatedDriver final : public MappingDriver {
 public:
  [[nodiscard]] std::int64_t granule() const override { return std::int64_t{1} << 16; }
  [[nodiscard]] Address reserve(std::int64_t bytes) override {
    void* const begin = mmap(nullptr, static_cast<std::size_t>(bytes), PROT_NONE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (begin == MAP_FAILED) throw DeviceError("no addresses");
    return reinterpret_cast<Address>(begin);
  }
  void unreserve(Address begin, std::int64_t bytes) override {
    munmap(pointer(begin), static_cast<std::size_t>(bytes));
  }
  [[nodiscard]] bool map(Address begin, std::int64_t bytes) override {
    if (!cuda_on_cpu::take_device_memory(bytes)) return false;
    const auto size = static_cast<std::size_t>(bytes);
    mprotect(pointer(begin), size, PROT_READ | PROT_WRITE);
    std::memset(pointer(begin), 0xff, size);
    return true;
  }
  void unmap(Address begin, std::int64_t bytes) override {
    (void)cuda_on_cpu::take_device_memory(-bytes);
    mprotect(pointer(begin), static_cast<std::size_t>(bytes), PROT_NONE);
  }
};

}  // namespace

MappingDriver& mapping_driver() {
  static EmulatedDriver driver;
  return driver;
}

}  // namespace kvspan::gpu_replay
