// SPDX-License-Identifier: Apache-2.0
// What the kernels of the score pass share: tiles in shared memory, who is there, launches.
#pragma once

#include <cmath>
#include <cstdint>

#include "gpu_replay/cuda/score.h"
#include "tracegen/cuda/kernel.h"

namespace kvspan::gpu_replay::score_tiles {

using namespace kvspan::tracegen;

inline constexpr int kWarp = 32, kWarps = 4, kThreads = kWarps * kWarp;
inline constexpr int kRows = kScoreRows, kKeys = kScoreKeys;
inline constexpr float kNone = -INFINITY;
// Elements from one row of a tile in shared memory to the next: 16 bytes more than the row, so
// that eight rows start in eight groups of banks.
template <typename T>
__host__ __device__ constexpr int tile_stride(int dim) {
  return (dim + 15) / 16 * 16 + 16 / static_cast<int>(sizeof(T));
}

__device__ inline std::int64_t lowest_key(const DeviceScores& s, std::int64_t row) {
  return s.window > 0 && row >= s.window ? row - s.window + 1 : 0;
}

// Deaths of the keys that a query head reads; null: nobody dies.
__device__ inline const std::uint32_t* deaths_of(const DeviceScores& s, const DeviceVector& vector,
                                                 int query_head) {
  if (vector.deaths == nullptr) return nullptr;
  const int head = query_head / (s.query_heads / vector.heads);
  return vector.deaths + head * s.tokens;
}

// The death of a key as a vector counts it: 0 where it does not count.
__device__ inline std::uint32_t death_of(const DeviceScores& s, const DeviceVector& vector,
                                         const std::uint32_t* deaths, std::int64_t key) {
  if (key >= s.tokens || key < vector.begin || key >= vector.end) return 0;
  return deaths == nullptr ? 0xffffffffU : deaths[key];
}

// Shared memory [kKeys, stride] from rows of `dim` elements, `step` apart; zeros from row `rows`
// on, and from element `dim` to the next multiple of 16.
template <typename T>
__device__ void load_tile(T* tile, int stride, const T* from, std::int64_t rows, std::int64_t step,
                          int dim) {
  constexpr int kPerCopy = 16 / static_cast<int>(sizeof(T));
  const int copies = (dim + 15) / 16 * 16 / kPerCopy;
  for (int i = static_cast<int>(threadIdx.x); i < kKeys * copies; i += kThreads) {
    const int row = i / copies, column = i % copies * kPerCopy;
    const bool there = row < rows && column < dim;
    copy_16_bytes(tile + row * stride + column, there ? from + row * step + column : from, there);
  }
}

// launch(T{}) with the type of the elements.
template <typename Launch>
void with_element(ScoreType type, const Launch& launch) {
  if (type == ScoreType::f16)
    launch(__half{});
  else if (type == ScoreType::bf16)
    launch(__nv_bfloat16{});
  else
    launch(float{});
}

inline unsigned blocks(std::int64_t of, std::int64_t each) {
  return static_cast<unsigned>((of + each - 1) / each);
}

template <typename Kernel>
void allow_shared(Kernel* kernel, int bytes) {
  KVSPAN_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

// Outputs of the first vectors, from logits and sums, and how far they are from the full cache's.
void launch_outputs(const DeviceScores& scores, CUstream_st* stream);

}  // namespace kvspan::gpu_replay::score_tiles
