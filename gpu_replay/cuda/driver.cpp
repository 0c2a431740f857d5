// SPDX-License-Identifier: Apache-2.0
// The driver's virtual memory management, by name: the module links no driver, and a machine
// without one is told so before it comes here.
#include "gpu_replay/cuda/driver.h"

#include <cuda.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <fmt/format.h>

#include "gpu_replay/cuda/check.h"
#include "sim/base/error.h"

namespace kvspan::gpu_replay {
namespace {

void require(CUresult status, const char* call) {
  if (status != CUDA_SUCCESS)
    throw DeviceError(fmt::format("CUDA: {} failed with error {}", call, static_cast<int>(status)));
}

class CudaDriver final : public MappingDriver {
 public:
  CudaDriver() {
    void* const library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    find(library, "cuMemAddressReserve", reserve_);
    find(library, "cuMemAddressFree", free_);
    find(library, "cuMemCreate", create_);
    find(library, "cuMemRelease", release_);
    find(library, "cuMemMap", map_);
    find(library, "cuMemUnmap", unmap_);
    find(library, "cuMemSetAccess", set_access_);
    find(library, "cuMemGetAllocationGranularity", granularity_);
    int device = 0;
    KVSPAN_REPLAY_CHECK(cudaGetDevice(&device));
    KVSPAN_REPLAY_CHECK(cudaFree(nullptr));  // makes the context that the driver's calls need
    what_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    what_.location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
    std::size_t granule = 0;
    require(granularity_(&granule, &what_, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
            "cuMemGetAllocationGranularity");
    granule_ = static_cast<std::int64_t>(granule);
  }

  [[nodiscard]] std::int64_t granule() const override { return granule_; }

  [[nodiscard]] Address reserve(std::int64_t bytes) override {
    CUdeviceptr begin = 0;
    require(reserve_(&begin, static_cast<std::size_t>(bytes), 0, 0, 0), "cuMemAddressReserve");
    return static_cast<Address>(begin);
  }
  void unreserve(Address begin, std::int64_t bytes) override {
    free_(static_cast<CUdeviceptr>(begin), static_cast<std::size_t>(bytes));
  }
  [[nodiscard]] bool map(Address begin, std::int64_t bytes) override {
    const auto at = static_cast<CUdeviceptr>(begin);
    const auto size = static_cast<std::size_t>(bytes);
    CUmemGenericAllocationHandle memory = 0;
    const CUresult status = create_(&memory, size, &what_, 0);
    if (status == CUDA_ERROR_OUT_OF_MEMORY) return false;
    require(status, "cuMemCreate");
    const CUresult mapped = map_(at, size, 0, memory, 0);
    release_(memory);  // it lives as long as it is mapped
    require(mapped, "cuMemMap");
    const CUmemAccessDesc access = {what_.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    require(set_access_(at, size, &access, 1), "cuMemSetAccess");
    return true;
  }
  void unmap(Address begin, std::int64_t bytes) override {
    unmap_(static_cast<CUdeviceptr>(begin), static_cast<std::size_t>(bytes));
  }

 private:
  template <typename Function>
  static void find(void* library, const char* name, Function*& out) {
    out = library == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(library, name));
    if (out == nullptr)
      throw DeviceError(fmt::format("the GPU driver has no {}, which maps memory", name));
  }
  decltype(&cuMemAddressReserve) reserve_ = nullptr;
  decltype(&cuMemAddressFree) free_ = nullptr;
  decltype(&cuMemCreate) create_ = nullptr;
  decltype(&cuMemRelease) release_ = nullptr;
  decltype(&cuMemMap) map_ = nullptr;
  decltype(&cuMemUnmap) unmap_ = nullptr;
  decltype(&cuMemSetAccess) set_access_ = nullptr;
  decltype(&cuMemGetAllocationGranularity) granularity_ = nullptr;
  CUmemAllocationProp what_{};
  std::int64_t granule_ = 0;
};

}  // namespace

MappingDriver& mapping_driver() {
  static CudaDriver driver;
  return driver;
}

}  // namespace kvspan::gpu_replay
