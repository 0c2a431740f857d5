// SPDX-License-Identifier: Apache-2.0
// What the kernels are written with: tensor-core products, tile loads and copies of one warp, as
// functions, so that a host program can stand in for them (tests/support/cuda_on_cpu emulates them,
// and the kernels' text is then plain C++). Included by .cu files only.
// Source: PTX ISA, "Matrix fragments for mma.m16n8k16", "ldmatrix", "cp.async".
#pragma once

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <type_traits>

#include "tracegen/cuda/device.h"

namespace kvspan::tracegen {

inline constexpr unsigned kWholeWarp = 0xffffffff;

// Fragments of lane l, with g = l / 4 and t = l % 4:
//   a  [16, 16]  a[0] (g, 2t..), a[1] (g + 8, 2t..), a[2] (g, 2t + 8..), a[3] (g + 8, 2t + 8..)
//   b  [16, 8]   b[0] (2t.., g), b[1] (2t + 8.., g)
//   c  [16, 8]   c[0], c[1] (g, 2t..), c[2], c[3] (g + 8, 2t..)
// where (i, j..) are two neighbours along the dimension that is summed over (c: along the columns).

#if defined(__CUDACC__)

// Whether T is multiplied by tensor cores on the architecture being compiled for.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <typename T>
inline constexpr bool kTensorCores = sizeof(T) == 2;
#else
template <typename T>
inline constexpr bool kTensorCores = false;
#endif

__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

// c += a b.
template <typename T>
__device__ inline void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                   std::uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#endif
}

// Four 8 x 8 tiles of 2-byte elements from shared memory: lane l names row l % 8 of tile l / 8.
__device__ inline void load_tiles(std::uint32_t (&tiles)[4], const void* row) {
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
               : "r"(at)
               : "memory");
}
__device__ inline void load_tiles_transposed(std::uint32_t (&tiles)[4], const void* row) {
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
               : "r"(at)
               : "memory");
}

// 16 bytes from global to shared memory, zeros instead if not `there`; complete after wait_copies.
__device__ inline void copy_16_bytes(void* shared, const void* global, bool there) {
#if __CUDA_ARCH__ >= 800
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
               "r"(there ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(shared) = there ? *static_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
#endif
}
// Closes a group of copies of this thread.
__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits for this thread's groups of copies but the last kPending.
template <int kPending>
__device__ inline void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Two neighbours in one register, `low` first in memory. REQUIRES: both in the range of T.
template <typename T>
__device__ inline std::uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
}

#endif  // __CUDACC__

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// Nearest value of T; beyond its range infinite.
template <typename T>
__device__ inline T narrow(float x) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half(x);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16(x);
  else
    return x;
}

// Launches `kernel`; the same call in CUDA and in the emulation. Errors: DeviceError.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared_bytes,
            cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  KVSPAN_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace kvspan::tracegen
