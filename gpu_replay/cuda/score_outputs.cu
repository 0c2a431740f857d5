// SPDX-License-Identifier: Apache-2.0
// weigh_values: outputs, a product each. A block owns 64 rows of one query head under one vector
// and takes weights exp(logit - max) / (the sum of what is read), so that the output is normalised
// as it is summed, however little is left. Tensor cores would round a weight to 8 or 11 bits: it
// goes in twice, as what is rounded and what that leaves over, 2^14 times as large, so that neither
// is too small for fp16.
//
// compare_outputs: a warp a row.
#include <cmath>
#include <cstdint>

#include "gpu_replay/cuda/score_tiles.cuh"

namespace kvspan::gpu_replay::score_tiles {
namespace {

constexpr float kLift = 0x1p14F;  // of weights, so that what rounding leaves is no subnormal fp16
constexpr double kLeast = 1e-30;  // of a sum: with less its output counts as nothing

// out += p v of 16 rows and a tile of keys, p in the layout of multiply().
template <typename T, int kDims>
__device__ void multiply_values(const float (&p)[kKeys / 8][4], const T* v,
                                float (&out)[kDims / 8][4]) {
  constexpr int kStride = kDims + 16 / static_cast<int>(sizeof(T));
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if constexpr (kTensorCores<T>) {
#pragma unroll
    for (int j = 0; j < kKeys / 8; j += 2) {
      std::uint32_t large[4], small[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float low = p[j + i / 2][i % 2 * 2], high = p[j + i / 2][i % 2 * 2 + 1];
        large[i] = pack<T>(low, high);
        small[i] = pack<T>(low - widen(narrow<T>(low)), high - widen(narrow<T>(high)));
      }
#pragma unroll
      for (int d = 0; d < kDims / 8; d += 2) {
        std::uint32_t b[4];
        load_tiles_transposed(b, v + (j * 8 + lane % 16) * kStride + d * 8 + lane / 16 * 8);
        mma_16x8x16<T>(out[d], large, b[0], b[1]);
        mma_16x8x16<T>(out[d], small, b[0], b[1]);
        mma_16x8x16<T>(out[d + 1], large, b[2], b[3]);
        mma_16x8x16<T>(out[d + 1], small, b[2], b[3]);
      }
    }
  } else {
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int owner = lane / 4 * 4 + i / 2;
        const float p0 = __shfl_sync(kWholeWarp, p[j][i % 2], owner);
        const float p1 = __shfl_sync(kWholeWarp, p[j][i % 2 + 2], owner);
        const T* const of = v + (j * 8 + i) * kStride + lane % 4 * 2;
#pragma unroll
        for (int d = 0; d < kDims / 8; ++d) {
          const float v0 = widen(of[d * 8]), v1 = widen(of[d * 8 + 1]);
          out[d][0] = fmaf(p0, v0, out[d][0]);
          out[d][1] = fmaf(p0, v1, out[d][1]);
          out[d][2] = fmaf(p1, v0, out[d][2]);
          out[d][3] = fmaf(p1, v1, out[d][3]);
        }
      }
  }
}

// Dimensions [chunk kDims, ...) of the outputs under one vector.
//   grid [rows / kRows, query_heads x outputs x chunks]
template <typename T, int kDims>
__global__ void __launch_bounds__(kThreads) weigh_values(DeviceScores s, int chunks) {
  constexpr int kStride = kDims + 16 / static_cast<int>(sizeof(T));
  T* const v_tile = reinterpret_cast<T*>(dynamic_shared());
  auto* const death = reinterpret_cast<std::uint32_t*>(v_tile + kKeys * kStride);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int dim = static_cast<int>(blockIdx.y) % chunks * kDims;
  const int query_head = static_cast<int>(blockIdx.y) / chunks % s.query_heads;
  const int m = static_cast<int>(blockIdx.y) / chunks / s.query_heads;
  const int kv_head = query_head / (s.query_heads / s.kv_heads);
  const DeviceVector vector = s.vector[m];
  const std::uint32_t* const deaths = deaths_of(s, vector, query_head);
  const std::int64_t begin = std::int64_t{gridDim.x - 1 - blockIdx.x} * kRows;
  const std::int64_t rows = min(s.rows - begin, std::int64_t{kRows});
  const std::int64_t first_row = s.row[begin];
  const std::int64_t last_row = s.row[begin + rows - 1];

  std::int64_t row[2], at[2];  // the lane's; -1: none
  float max[2], factor[2];     // of the terms, to weights
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = warp * 16 + lane / 4 + half * 8;
    row[half] = r < rows ? s.row[begin + r] : -1;
    at[half] = query_head * s.rows + begin + (r < rows ? r : 0);
    max[half] = s.max[at[half]];
    double sum = s.sums[m * std::int64_t{s.query_heads} * s.rows + at[half]];
    if (s.sinks != nullptr) sum += exp(static_cast<double>(s.sinks[query_head] - max[half]));
    factor[half] = sum > kLeast ? static_cast<float>(kLift / sum) : 0;
  }
  float out[kDims / 8][4] = {};

  const T* const v = static_cast<const T*>(s.v) + std::int64_t{kv_head} * s.v_dim + dim;
  const std::int64_t step = std::int64_t{s.kv_heads} * s.v_dim;
  const int width = min(s.v_dim - dim, kDims);
  for (std::int64_t tile = lowest_key(s, first_row) / kKeys; tile <= last_row / kKeys; ++tile) {
    const std::int64_t tile_key = tile * kKeys;
    __syncthreads();  // v_tile and death of the tile before are no longer read
    if (threadIdx.x < kKeys)
      death[threadIdx.x] = death_of(s, vector, deaths, tile_key + threadIdx.x);
    __syncthreads();
    const bool there =
        std::int64_t{death[lane]} > first_row || std::int64_t{death[lane + kWarp]} > first_row;
    if (!__any_sync(kWholeWarp, there)) continue;  // all warps see the same
    constexpr int kPerCopy = 16 / static_cast<int>(sizeof(T));
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * (kDims / kPerCopy); i += kThreads) {
      const int key = i / (kDims / kPerCopy), column = i % (kDims / kPerCopy) * kPerCopy;
      const bool read = tile_key + key < s.tokens && column < width;
      copy_16_bytes(v_tile + key * kStride + column,
                    read ? v + (tile_key + key) * step + column : v, read);
    }
    commit_copies();
    float p[kKeys / 8][4];
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = j * 8 + lane % 4 * 2 + i % 2;
        p[j][i] = 0;
        if (row[i / 2] < 0 || row[i / 2] >= std::int64_t{death[key]}) continue;
        const float z = s.logits[at[i / 2] * s.stride + tile_key + key];
        p[j][i] = factor[i / 2] * expf(z - max[i / 2]);
      }
    wait_copies<0>();
    __syncthreads();  // v_tile is there
    multiply_values<T, kDims>(p, v_tile, out);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (row[half] < 0) continue;
    float* const to =
        s.output + (m * std::int64_t{s.query_heads} * s.rows + at[half]) * s.v_dim + dim;
#pragma unroll
    for (int d = 0; d < kDims / 8; ++d) {
      const int column = d * 8 + lane % 4 * 2;
      if (column >= width) continue;
      to[column] = out[d][half * 2] * (1 / kLift);
      to[column + 1] = out[d][half * 2 + 1] * (1 / kLift);
    }
  }
}

//   grid [query_heads x rows / kWarps, outputs]
__global__ void compare_outputs(DeviceScores s) {
  const std::int64_t count = std::int64_t{s.query_heads} * s.rows;
  const std::int64_t at = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (at >= count) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t m = blockIdx.y;
  const float* const full = s.output + at * s.v_dim;
  const float* const kept = s.output + (m * count + at) * s.v_dim;
  float difference = 0, norm = 0;
  for (int i = lane; i < s.v_dim; i += kWarp) {
    const float by = kept[i] - full[i];
    difference = fmaf(by, by, difference);
    norm = fmaf(full[i], full[i], norm);
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    difference += __shfl_xor_sync(kWholeWarp, difference, lanes);
    norm += __shfl_xor_sync(kWholeWarp, norm, lanes);
  }
  if (lane != 0) return;
  s.errors[m * count + at] = difference == 0 ? 0 : norm > 0 ? sqrtf(difference / norm) : INFINITY;
}

template <typename T, int kDims>
void launch_values(const DeviceScores& s, CUstream_st* stream) {
  const int bytes =
      kKeys * (kDims + 16 / static_cast<int>(sizeof(T))) * static_cast<int>(sizeof(T)) +
      kKeys * static_cast<int>(sizeof(std::uint32_t));
  const int chunks = (s.v_dim + kDims - 1) / kDims;
  launch(weigh_values<T, kDims>,
         dim3(blocks(s.rows, kRows), static_cast<unsigned>(s.query_heads * s.outputs * chunks)),
         kThreads, static_cast<std::size_t>(bytes), stream, s, chunks);
}

template <typename T>
void launch_typed(const DeviceScores& s, CUstream_st* stream) {
  if constexpr (sizeof(T) == 2) {
    if (s.v_dim > 64) return launch_values<T, 128>(s, stream);
  }
  launch_values<T, 64>(s, stream);
}

}  // namespace

void launch_outputs(const DeviceScores& scores, CUstream_st* stream) {
  with_element(scores.type, [&](auto element) { launch_typed<decltype(element)>(scores, stream); });
  launch(
      compare_outputs,
      dim3(blocks(scores.query_heads * scores.rows, kWarps), static_cast<unsigned>(scores.outputs)),
      kThreads, 0, stream, scores);
}

}  // namespace kvspan::gpu_replay::score_tiles
