// SPDX-License-Identifier: Apache-2.0
// Output, log-sum-exp and candidates: the sweep over the keys.
#pragma once

#include "tracegen/cuda/attention/candidates.cuh"
#include "tracegen/cuda/attention/products.cuh"
#include "tracegen/cuda/attention/shape.cuh"

namespace kvspan::tracegen::tiled_attention {

// Of the four lanes that share two rows.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(kWholeWarp, x, 1);
  return x + __shfl_xor_sync(kWholeWarp, x, 2);
}

// Output, log-sum-exp and candidates of kRows packed rows of a KV head.
//   grid [packed rows / kRows, kv_heads], block kThreads; shared memory q, k and v tiles
//   q    [rows, query_heads, head_dim]; k, v [keys, kv_heads, head_dim]
//   out  [rows, query_heads, head_dim]; lse2 [rows, query_heads], in units of log2
// Without kCapture, which costs registers (fp32, 64: 254 for 168), only `out`.
template <typename T, int kDim, bool kCapture>
__global__ void __launch_bounds__(Tiles<T, kDim>::kThreads)
    attend_rows(Shape shape, const T* __restrict__ q, const T* __restrict__ k,
                const T* __restrict__ v, float* __restrict__ out, float* __restrict__ lse2,
                Candidates candidates) {
  using Tile = Tiles<T, kDim>;
  constexpr int kKeys = Tile::kKeys;
  T* const q_tile = reinterpret_cast<T*>(dynamic_shared());
  T* const k_tile = q_tile + Tile::kRows * Tile::kStride;
  T* const v_tile = k_tile + kKeys * Tile::kStride;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int kv_head = static_cast<int>(blockIdx.y);
  const int head = kv_head * shape.pack;

  // The last rows have the most keys: they start first, so that no block is late at the end.
  const std::int64_t begin = std::int64_t{gridDim.x - 1 - blockIdx.x} * Tile::kRows;
  const std::int64_t end = min(begin + Tile::kRows, shape.rows * shape.pack);
  const std::int64_t first_row = shape.first + shape.row_of(begin);
  const std::int64_t last_row = shape.first + shape.row_of(end - 1);

  std::int64_t row[2];
  bool there[2];
  std::int64_t slot[2];  // in [rows, query_heads]
  RowCandidates collected;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::int64_t p = begin + warp * kWarpRows + lane / 4 + half * 8;
    there[half] = p < end;
    row[half] = shape.first + shape.row_of(p);
    slot[half] = shape.slot_of(p, head);
    if constexpr (kCapture) {
      collected.list[half] = candidates.list + slot[half] * candidates.capacity;
      collected.count[half] = 0;
      // Finite, so that a score of minus infinity, a key that is not read, never reaches it.
      collected.threshold[half] = there[half] ? kLowest : -kNothing;
    }
  }

  float sum[kDim / 8][4] = {};
  float largest[2] = {kNothing, kNothing};
  float denominator[2] = {0, 0};  // of this lane's columns

  const std::int64_t first_tile = shape.lowest_key(first_row) / kKeys;
  std::int64_t tile = last_row / kKeys;
  load_queries<T, kDim>(q_tile, shape, q, head, begin);
  load_keys<T, kDim>(k_tile, shape, k, kv_head, tile * kKeys);
  commit_copies();
  for (; tile >= first_tile; --tile) {
    const std::int64_t tile_key = tile * kKeys;
    wait_copies<0>();
    __syncthreads();  // k_tile is there, and v_tile is no longer read
    load_keys<T, kDim>(v_tile, shape, v, kv_head, tile_key);
    commit_copies();

    float scores[kKeys / 8][4];
    multiply_queries_keys<T, kDim, kKeys>(q_tile + warp * kWarpRows * Tile::kStride, k_tile,
                                          scores);
    __syncthreads();  // k_tile is no longer read
    if (tile > first_tile) load_keys<T, kDim>(k_tile, shape, k, kv_head, tile_key - kKeys);
    commit_copies();

    const bool whole = shape.visible == nullptr && tile_key + kKeys - 1 <= first_row &&
                       tile_key >= shape.lowest_key(last_row);
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        scores[j][c] *= shape.scale;
        if (!whole && !shape.reads(row[c / 2], tile_key + j * 8 + lane % 4 * 2 + c % 2, kv_head))
          scores[j][c] = kNothing;
      }
    if (kCapture && candidates.top_k > 0)
      collect<kKeys>(scores, tile_key, candidates.capacity, candidates.top_k, collected);

    float rescale[2];
    float base[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float tile_max = kNothing;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
        tile_max = fmaxf(tile_max, fmaxf(scores[j][half * 2], scores[j][half * 2 + 1]));
      const float before = largest[half];
      largest[half] = fmaxf(before, quad_max(tile_max));
      base[half] = largest[half] == kNothing ? 0 : largest[half];
      rescale[half] = exp2f(before - base[half]);
      denominator[half] *= rescale[half];
    }
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        scores[j][c] = exp2f(scores[j][c] - base[c / 2]);
        denominator[c / 2] += scores[j][c];
      }
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
      for (int c = 0; c < 4; ++c) sum[d][c] *= rescale[c / 2];

    wait_copies<1>();
    __syncthreads();  // v_tile is there; the next k_tile may be under way
    multiply_probabilities_values<T, kDim, kKeys>(scores, v_tile, sum);
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = quad_sum(denominator[half]);
    const float inverse = total > 0 ? 1 / total : 0;
    if (!there[half]) continue;
    float* const to = out + slot[half] * shape.head_dim;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      const int column = d * 8 + lane % 4 * 2;
      if (column >= shape.head_dim) continue;
      to[column] = sum[d][half * 2] * inverse;
      to[column + 1] = sum[d][half * 2 + 1] * inverse;
    }
    if constexpr (kCapture) {
      if (lane % 4 != 0) continue;
      lse2[slot[half]] = largest[half] + log2f(total);  // nothing to read: both minus infinity
      if (candidates.top_k > 0) candidates.count[slot[half]] = collected.count[half];
    }
  }
}

}  // namespace kvspan::tracegen::tiled_attention
