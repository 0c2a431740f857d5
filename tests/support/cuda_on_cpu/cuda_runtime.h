// SPDX-License-Identifier: Apache-2.0
// Stands in for the CUDA headers, so that the text of .../cuda compiles as C++ and its kernels
// run on the CPU: what is checked is their algorithm, their indexing and the order of what the host
// launches, not the hardware, its memory model or its speed.
//
// The threads of a block are coroutines that run one at a time and change only where CUDA makes
// them meet: at barriers and warp operations. The order in between is drawn from a seed: a missing
// barrier shows as a result that depends on it, a warp that diverges at an operation, or a barrier
// that not all reach, as an exception. Streams are lazy: nothing runs before the host, or a stream
// that the host waits for, waits for it, so that a missing wait shows as a result that is not
// there. cp.async delivers at once or when it is waited for, by the seed. Fresh memory, shared
// memory too, is NaN. Tensor-core fragments follow the PTX ISA (kernel.h).
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#include <Eigen/Core>

// NOLINTBEGIN: the names are CUDA's.
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

using __half = Eigen::half;
using __nv_bfloat16 = Eigen::bfloat16;
inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half(float x) { return static_cast<__half>(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return static_cast<float>(x); }
inline __nv_bfloat16 __float2bfloat16(float x) { return static_cast<__nv_bfloat16>(x); }

using std::max;
using std::min;
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }

namespace kvspan::cuda_on_cpu {

inline constexpr int kLanes = 32;
using Lanes = std::array<void*, kLanes>;

// The order in which threads run between barriers: 0 ascending, 1 descending, else drawn; cp.async
// delivers at once (even) or when it is waited for (odd).
void set_schedule(std::uint64_t seed);
// Bytes of device memory from now on; cudaMalloc fails beyond.
void set_device_memory(std::size_t bytes);
// Takes so many bytes of device memory, if they are there, or gives them back (below 0).
bool take_device_memory(std::int64_t bytes);
// Bytes of shared memory that a block may ask for from now on.
void set_shared_memory(int bytes);
// Bytes of pinned host memory that are allocated.
std::size_t pinned_memory();

// Called by all lanes of a warp with what each brings; `all` sees them all, once.
void meet_warp(void* mine, void (*all)(const Lanes&));
void meet_block();
unsigned char* shared_memory();
void copy_later(void* to, const void* from, bool there);
void close_copies();
void finish_copies(std::size_t pending);

void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& thread);

}  // namespace kvspan::cuda_on_cpu

inline void __syncthreads() { kvspan::cuda_on_cpu::meet_block(); }
inline void __syncwarp() {
  kvspan::cuda_on_cpu::meet_warp(nullptr, [](const kvspan::cuda_on_cpu::Lanes&) {});
}

template <typename T>
T __shfl_sync(unsigned /*mask*/, T value, int from) {
  struct Lane {
    T value;
    int from;
    T result;
  } mine{value, from, value};
  kvspan::cuda_on_cpu::meet_warp(&mine, [](const kvspan::cuda_on_cpu::Lanes& lanes) {
    for (void* lane : lanes) {
      auto* const l = static_cast<Lane*>(lane);
      l->result = static_cast<Lane*>(lanes.at(static_cast<std::size_t>(l->from)))->value;
    }
  });
  return mine.result;
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % 32) ^ lanes);
}
inline unsigned __ballot_sync(unsigned /*mask*/, bool vote) {
  struct Lane {
    bool vote;
    unsigned result;
  } mine{vote, 0};
  kvspan::cuda_on_cpu::meet_warp(&mine, [](const kvspan::cuda_on_cpu::Lanes& lanes) {
    unsigned votes = 0;
    for (unsigned i = 0; i < lanes.size(); ++i)
      votes |= static_cast<Lane*>(lanes[i])->vote ? 1U << i : 0;
    for (void* lane : lanes) static_cast<Lane*>(lane)->result = votes;
  });
  return mine.result;
}
inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }

// ---- What kernel.h defines by PTX ---------------------------------------------------------------

namespace kvspan::tracegen {

template <typename T>
inline constexpr bool kTensorCores = sizeof(T) == 2;

inline unsigned char* dynamic_shared() { return cuda_on_cpu::shared_memory(); }

template <typename T>
std::uint32_t pack(float low, float high) {
  const T pair[2] = {static_cast<T>(low), static_cast<T>(high)};
  std::uint32_t bits = 0;
  std::memcpy(&bits, pair, sizeof bits);
  return bits;
}
template <typename T>
std::array<float, 2> unpack(std::uint32_t bits) {
  return {static_cast<float>(Eigen::numext::bit_cast<T>(static_cast<std::uint16_t>(bits))),
          static_cast<float>(Eigen::numext::bit_cast<T>(static_cast<std::uint16_t>(bits >> 16)))};
}

template <typename T>
void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  struct Lane {
    float* c;
    const std::uint32_t* a;
    std::uint32_t b[2];
  } mine{c, a, {b0, b1}};
  cuda_on_cpu::meet_warp(&mine, [](const cuda_on_cpu::Lanes& lanes) {
    float left[16][16], right[16][8];
    for (std::size_t l = 0; l < lanes.size(); ++l) {
      const auto& lane = *static_cast<const Lane*>(lanes[l]);
      const std::size_t g = l / 4, t = l % 4;
      for (std::size_t i = 0; i < 4; ++i) {
        const auto pair = unpack<T>(lane.a[i]);
        float* const to = &left[g + i % 2 * 8][2 * t + i / 2 * 8];
        to[0] = pair[0];
        to[1] = pair[1];
      }
      for (std::size_t i = 0; i < 2; ++i) {
        const auto pair = unpack<T>(lane.b[i]);
        right[2 * t + i * 8][g] = pair[0];
        right[2 * t + i * 8 + 1][g] = pair[1];
      }
    }
    for (std::size_t l = 0; l < lanes.size(); ++l) {
      const auto& lane = *static_cast<const Lane*>(lanes[l]);
      for (std::size_t i = 0; i < 4; ++i)
        for (std::size_t k = 0; k < 16; ++k)
          lane.c[i] += left[l / 4 + i / 2 * 8][k] * right[k][l % 4 * 2 + i % 2];
    }
  });
}

struct TileLane {
  const void* row;
  std::uint32_t* tiles;
};
inline void load_tiles(std::uint32_t (&tiles)[4], const void* row) {
  TileLane mine{row, tiles};
  cuda_on_cpu::meet_warp(&mine, [](const cuda_on_cpu::Lanes& lanes) {
    for (std::size_t l = 0; l < lanes.size(); ++l)
      for (std::size_t i = 0; i < 4; ++i) {
        const auto* const from = static_cast<const TileLane*>(lanes[i * 8 + l / 4])->row;
        std::memcpy(static_cast<const TileLane*>(lanes[l])->tiles + i,
                    static_cast<const std::byte*>(from) + l % 4 * 4, 4);
      }
  });
}
inline void load_tiles_transposed(std::uint32_t (&tiles)[4], const void* row) {
  TileLane mine{row, tiles};
  cuda_on_cpu::meet_warp(&mine, [](const cuda_on_cpu::Lanes& lanes) {
    for (std::size_t l = 0; l < lanes.size(); ++l)
      for (std::size_t i = 0; i < 4; ++i)
        for (std::size_t half = 0; half < 2; ++half) {
          const auto* const from =
              static_cast<const TileLane*>(lanes[i * 8 + l % 4 * 2 + half])->row;
          auto* const to = static_cast<const TileLane*>(lanes[l])->tiles + i;
          std::memcpy(reinterpret_cast<std::byte*>(to) + half * 2,
                      static_cast<const std::byte*>(from) + l / 4 * 2, 2);
        }
  });
}

inline void copy_16_bytes(void* shared, const void* global, bool there) {
  cuda_on_cpu::copy_later(shared, global, there);
}
inline void commit_copies() { cuda_on_cpu::close_copies(); }
template <int kPending>
void wait_copies() {
  cuda_on_cpu::finish_copies(kPending);
}

}  // namespace kvspan::tracegen

// ---- The runtime's functions that tracegen/cuda calls -------------------------------------------

struct CUstream_st;
struct CUevent_st;
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorInvalidValue = 1 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDefault };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2,
                          cudaHostAllocDefault = 0;

struct CUmemPoolHandle_st;
using cudaMemPool_t = CUmemPoolHandle_st*;
enum cudaMemAllocationType { cudaMemAllocationTypePinned = 1 };
enum cudaMemLocationType { cudaMemLocationTypeDevice = 1 };
enum cudaMemPoolAttr { cudaMemPoolAttrReservedMemCurrent = 5 };
struct cudaMemPoolProps {
  cudaMemAllocationType allocType;
  struct {
    cudaMemLocationType type;
    int id;
  } location;
};

struct cudaDeviceProp {
  char name[256];
  int major, minor;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

const char* cudaGetErrorString(cudaError_t status);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaMalloc(void** data, std::size_t bytes);
cudaError_t cudaFree(void* data);
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties);
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool);
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value);
cudaError_t cudaMallocFromPoolAsync(void** data, std::size_t bytes, cudaMemPool_t pool,
                                    cudaStream_t stream);
cudaError_t cudaFreeAsync(void* data, cudaStream_t stream);
cudaError_t cudaHostAlloc(void** data, std::size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* data);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream);

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* /*kernel*/, cudaFuncAttribute /*attribute*/,
                                 int /*value*/) {
  return cudaSuccess;
}

void enqueue_cuda(cudaStream_t stream, std::function<void()> work);

template <typename... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Parameters... arguments) {
  enqueue_cuda(config->stream,
               [c = *config, kernel, all = std::tuple<Parameters...>(arguments...)] {
                 kvspan::cuda_on_cpu::run_grid(c.gridDim, c.blockDim, c.dynamicSmemBytes,
                                               [&] { std::apply(kernel, all); });
               });
  return cudaSuccess;
}
// NOLINTEND
