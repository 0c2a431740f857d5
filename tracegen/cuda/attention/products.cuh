// SPDX-License-Identifier: Apache-2.0
// Tiles of q, k and v in shared memory, and the two products of attention by one warp.
#pragma once

#include "tracegen/cuda/attention/shape.cuh"

namespace kvspan::tracegen::tiled_attention {

// Shared memory [rows, stride] from rows of `head_dim` elements; `source(i)` is null for a row of
// zeros, and so are elements from head_dim to kDim.
template <typename T, int kDim, typename Source>
__device__ void load_rows(T* tile, int rows, int head_dim, const Source& source) {
  constexpr int kPerCopy = 16 / static_cast<int>(sizeof(T));
  constexpr int kCopies = kDim / kPerCopy;
  for (int i = static_cast<int>(threadIdx.x); i < rows * kCopies; i += Tiles<T, kDim>::kThreads) {
    const int row = i / kCopies;
    const int column = i % kCopies * kPerCopy;
    const T* from = source(row);
    const bool there = from != nullptr && column < head_dim;
    copy_16_bytes(tile + row * Tiles<T, kDim>::kStride + column, there ? from + column : from,
                  there);
  }
}

template <typename T, int kDim>
__device__ void load_queries(T* tile, const Shape& shape, const T* __restrict__ q, int head,
                             std::int64_t packed_row) {
  load_rows<T, kDim>(tile, Tiles<T, kDim>::kRows, shape.head_dim, [&](int i) -> const T* {
    const std::int64_t p = packed_row + i;
    if (p >= shape.rows * shape.pack) return nullptr;
    return q + shape.slot_of(p, head) * shape.head_dim;
  });
}

template <typename T, int kDim>
__device__ void load_keys(T* tile, const Shape& shape, const T* __restrict__ k, int kv_head,
                          std::int64_t key) {
  load_rows<T, kDim>(tile, Tiles<T, kDim>::kKeys, shape.head_dim, [&](int i) -> const T* {
    if (key + i >= shape.keys) return nullptr;
    return k + ((key + i) * shape.kv_heads + kv_head) * shape.head_dim;
  });
}

// scores = q k^T of 16 rows of q and all rows of k.
template <typename T, int kDim, int kKeys>
__device__ void multiply_queries_keys(const T* q, const T* k, float (&scores)[kKeys / 8][4]) {
  constexpr int kStride = Tiles<T, kDim>::kStride;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (auto& column : scores)
    for (float& score : column) score = 0;
  if constexpr (kTensorCores<T>) {
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      std::uint32_t a[4];
      load_tiles(a, q + lane % 16 * kStride + d + lane / 16 * 8);
#pragma unroll
      for (int j = 0; j < kKeys / 8; j += 2) {
        std::uint32_t b[4];
        load_tiles(b, k + (j * 8 + lane / 16 * 8 + lane % 8) * kStride + d + lane / 8 % 2 * 8);
        mma_16x8x16<T>(scores[j], a, b[0], b[1]);
        mma_16x8x16<T>(scores[j + 1], a, b[2], b[3]);
      }
    }
  } else {
    const T* const q0 = q + lane / 4 * kStride;
    const T* const q1 = q0 + 8 * kStride;
    const T* const k0 = k + lane % 4 * 2 * kStride;
#pragma unroll 4
    for (int d = 0; d < kDim; ++d) {
      const float a0 = widen(q0[d]);
      const float a1 = widen(q1[d]);
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float b = widen(k0[(j * 8 + c) * kStride + d]);
          scores[j][c] = fmaf(a0, b, scores[j][c]);
          scores[j][c + 2] = fmaf(a1, b, scores[j][c + 2]);
        }
      }
    }
  }
}

// out += p v, p in the layout of multiply_queries_keys.
template <typename T, int kDim, int kKeys>
__device__ void multiply_probabilities_values(const float (&p)[kKeys / 8][4], const T* v,
                                              float (&out)[kDim / 8][4]) {
  constexpr int kStride = Tiles<T, kDim>::kStride;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if constexpr (kTensorCores<T>) {
#pragma unroll
    for (int j = 0; j < kKeys / 8; j += 2) {
      // The layout of a product is that of a left factor: no exchange between lanes.
      const std::uint32_t a[4] = {pack<T>(p[j][0], p[j][1]), pack<T>(p[j][2], p[j][3]),
                                  pack<T>(p[j + 1][0], p[j + 1][1]),
                                  pack<T>(p[j + 1][2], p[j + 1][3])};
#pragma unroll
      for (int d = 0; d < kDim / 8; d += 2) {
        std::uint32_t b[4];
        load_tiles_transposed(b, v + (j * 8 + lane % 16) * kStride + d * 8 + lane / 16 * 8);
        mma_16x8x16<T>(out[d], a, b[0], b[1]);
        mma_16x8x16<T>(out[d + 1], a, b[2], b[3]);
      }
    }
  } else {
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int owner = lane / 4 * 4 + i / 2;
        const float p0 = __shfl_sync(kWholeWarp, p[j][i % 2], owner);
        const float p1 = __shfl_sync(kWholeWarp, p[j][i % 2 + 2], owner);
        const T* const row = v + (j * 8 + i) * kStride + lane % 4 * 2;
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d) {
          const float v0 = widen(row[d * 8]);
          const float v1 = widen(row[d * 8 + 1]);
          out[d][0] = fmaf(p0, v0, out[d][0]);
          out[d][1] = fmaf(p0, v1, out[d][1]);
          out[d][2] = fmaf(p1, v0, out[d][2]);
          out[d][3] = fmaf(p1, v1, out[d][3]);
        }
      }
    }
  }
}

}  // namespace kvspan::tracegen::tiled_attention
