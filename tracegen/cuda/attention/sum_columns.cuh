// SPDX-License-Identifier: Apache-2.0
// What each key received: the second sweep, over the rows.
#pragma once

#include "tracegen/cuda/attention/products.cuh"
#include "tracegen/cuda/attention/shape.cuh"

namespace kvspan::tracegen::tiled_attention {

// Adds the probabilities that kKeys keys receive from all rows of one query head.
//   grid [keys / kKeys, query_heads], block kThreads; shared memory q and k tiles; shape.pack = 1
//   column_mass [query_heads, stride]
template <typename T, int kDim>
__global__ void __launch_bounds__(Tiles<T, kDim>::kThreads)
    sum_column_masses(Shape shape, const T* __restrict__ q, const T* __restrict__ k,
                      const float* __restrict__ lse2, float* __restrict__ column_mass,
                      std::int64_t stride) {
  using Tile = Tiles<T, kDim>;
  constexpr int kKeys = Tile::kKeys;
  __shared__ float parts[Tile::kWarps][kKeys];
  T* const q_tile = reinterpret_cast<T*>(dynamic_shared());
  T* const k_tile = q_tile + Tile::kRows * Tile::kStride;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int head = static_cast<int>(blockIdx.y);
  const int kv_head = head / (shape.query_heads / shape.kv_heads);
  const std::int64_t tile_key = std::int64_t{blockIdx.x} * kKeys;

  load_keys<T, kDim>(k_tile, shape, k, kv_head, tile_key);
  float mass[kKeys / 8][2] = {};
  const std::int64_t begin = max(std::int64_t{0}, tile_key - shape.first) / Tile::kRows;
  const std::int64_t last =  // row that reads any of these keys
      shape.window > 0 ? min(shape.keys, tile_key + kKeys + shape.window - 1) : shape.keys;
  for (std::int64_t r = begin * Tile::kRows; shape.first + r < last; r += Tile::kRows) {
    load_queries<T, kDim>(q_tile, shape, q, head, r);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    float scores[kKeys / 8][4];
    multiply_queries_keys<T, kDim, kKeys>(q_tile + warp * kWarpRows * Tile::kStride, k_tile,
                                          scores);
    __syncthreads();  // q_tile is no longer read
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t own = r + warp * kWarpRows + lane / 4 + half * 8;
      if (own >= shape.rows) continue;
      const float row_lse2 = lse2[own * shape.query_heads + head];
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          if (shape.reads(shape.first + own, tile_key + j * 8 + lane % 4 * 2 + c, kv_head))
            mass[j][c] += exp2f(scores[j][half * 2 + c] * shape.scale - row_lse2);
    }
  }
  wait_copies<0>();

#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float x = mass[j][c];
      for (int lanes = 4; lanes < kWarp; lanes *= 2) x += __shfl_xor_sync(kWholeWarp, x, lanes);
      if (lane < 4) parts[warp][j * 8 + lane * 2 + c] = x;
    }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kKeys; i += Tile::kThreads) {
    if (tile_key + i >= shape.keys) continue;
    float x = 0;
    for (const auto& part : parts) x += part[i];
    column_mass[head * stride + tile_key + i] += x;
  }
}

}  // namespace kvspan::tracegen::tiled_attention
