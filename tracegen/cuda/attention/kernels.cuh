// SPDX-License-Identifier: Apache-2.0
// The bodies of AttentionKernels, for the files that compile them.
#pragma once

#include <cstddef>

#include "tracegen/cuda/attention/attend.cuh"
#include "tracegen/cuda/attention/shape.cuh"
#include "tracegen/cuda/attention/sum_columns.cuh"

namespace kvspan::tracegen::tiled_attention {

template <typename T, int kDim>
inline constexpr int kColumnBytes =
    Tiles<T, kDim>::bytes(Tiles<T, kDim>::kRows + Tiles<T, kDim>::kKeys);

template <typename T, int kDim>
void AttentionKernels<T, kDim>::reserve_shared() {
  const auto reserve = [](auto* kernel, int bytes) {
    KVSPAN_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  };
  reserve(attend_rows<T, kDim, false>, kSharedBytes);
  reserve(attend_rows<T, kDim, true>, kSharedBytes);
  reserve(sum_column_masses<T, kDim>, kColumnBytes<T, kDim>);
}

template <typename T, int kDim>
void AttentionKernels<T, kDim>::attend(const Sweep& s, cudaStream_t stream) {
  using Tile = Tiles<T, kDim>;
  auto* const kernel = s.lse2 != nullptr ? attend_rows<T, kDim, true> : attend_rows<T, kDim, false>;
  launch(kernel, grid_of(ceil_div(s.shape.rows * s.shape.pack, Tile::kRows), s.shape.kv_heads),
         Tile::kThreads, std::size_t{kSharedBytes}, stream, s.shape, static_cast<const T*>(s.q),
         static_cast<const T*>(s.k), static_cast<const T*>(s.v), s.out, s.lse2, s.candidates);
}

template <typename T, int kDim>
void AttentionKernels<T, kDim>::sum_columns(const Sweep& s, cudaStream_t stream) {
  using Tile = Tiles<T, kDim>;
  Shape shape = s.shape;
  shape.pack = 1;
  launch(sum_column_masses<T, kDim>, grid_of(ceil_div(shape.keys, Tile::kKeys), shape.query_heads),
         Tile::kThreads, std::size_t{kColumnBytes<T, kDim>}, stream, shape,
         static_cast<const T*>(s.q), static_cast<const T*>(s.k), s.lse2, s.column_mass,
         s.column_stride);
}

}  // namespace kvspan::tracegen::tiled_attention
