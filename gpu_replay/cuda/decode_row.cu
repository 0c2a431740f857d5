// SPDX-License-Identifier: Apache-2.0
// Attention of one decode row over the entries that a pool holds, gathered through block tables.
//
// One row against a long cache must fill the card, so the entries of a head are cut into parts, and
// a warp takes one part of one KV head for all query heads that read it (GQA packed): every key and
// value is read once.
//
//   slots of a head   [ part 0 | part 1 | part 2 | ... ]     a warp each
//   lane              dimensions lane, lane + 32, ...        of q, k, v and the sums
//
// A warp takes its entries one by one: dot products by a butterfly over the lanes, softmax as they
// come (its maximum, sum and weighted values so far). A second kernel puts the parts of a query
// head together, a warp each. fp8 and fp16 become float in registers.
// Source: Milakov and Gimelshein, Online normalizer calculation for softmax (2018); Dao et al.,
// Flash-Decoding (2023).
#include <cmath>
#include <cstdint>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "gpu_replay/cuda/check.h"
#include "gpu_replay/cuda/decode_row.h"

namespace kvspan::gpu_replay {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 4;  // of a block
constexpr unsigned kAllLanes = 0xffffffff;

__device__ float sum_of_lanes(float x) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

// Element `i` of a vector. The seven bits of e4m3 below the sign, put where a float has the end of
// its exponent and the top of its mantissa, are the number times 2^-120, subnormals too.
__device__ float element_at(const unsigned char* from, int i, Element element, float scale) {
  if (element == Element::f32) return reinterpret_cast<const float*>(from)[i];
  if (element == Element::f16) return __half2float(reinterpret_cast<const __half*>(from)[i]);
  const unsigned bits = from[i];
  const float size = __uint_as_float((bits & 0x7fU) << 20U) * 0x1p120F;
  return ((bits & 0x80U) != 0 ? -size : size) * scale;
}

// kGroup: query heads of a head at most; kPer: dimensions of a lane at most.
//   grid [parts / kWarps, heads]
template <int kGroup, int kPer>
__global__ void attend_part(DeviceRow row) {
  const int part = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (part >= row.parts) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int head = static_cast<int>(blockIdx.y);
  const int group = row.query_heads / row.heads;
  const std::int64_t first = row.slot_begin[head];
  const std::int64_t entries = row.slot_begin[head + 1] - first;
  const std::int64_t each = (entries + row.parts - 1) / row.parts;
  const std::int64_t begin = part * each;
  const std::int64_t end = begin + each < entries ? begin + each : entries;

  float q[kGroup][kPer], values[kGroup][kPer], max[kGroup], sum[kGroup];
#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
    max[g] = -INFINITY;
    sum[g] = 0;
#pragma unroll
    for (int d = 0; d < kPer; ++d) {
      const int i = lane + d * kWarp;
      values[g][d] = 0;
      q[g][d] = g < group && i < row.k_dim
                    ? row.q[(std::int64_t{head} * group + g) * row.k_dim + i] * row.scale
                    : 0;
    }
  }

  const int element_bytes = row.element == Element::f32 ? 4 : row.element == Element::f16 ? 2 : 1;
  for (std::int64_t at = begin; at < end; ++at) {
    const std::int64_t slot = row.slots[first + at];
    const std::int64_t block = row.blocks[row.block_begin[head] + slot / row.block_size];
    const auto* const key =
        reinterpret_cast<const unsigned char*>(block + slot % row.block_size * row.slot_bytes);
    const unsigned char* const value = key + std::int64_t{row.k_dim} * element_bytes;
    float k[kPer], v[kPer];
#pragma unroll
    for (int d = 0; d < kPer; ++d) {
      const int i = lane + d * kWarp;
      k[d] = i < row.k_dim ? element_at(key, i, row.element, row.k_scale[head]) : 0;
      v[d] = i < row.v_dim ? element_at(value, i, row.element, row.v_scale[head]) : 0;
    }
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      if (g >= group) break;
      float logit = 0;
#pragma unroll
      for (int d = 0; d < kPer; ++d) logit = fmaf(q[g][d], k[d], logit);
      logit = sum_of_lanes(logit);
      if (row.softcap > 0) logit = row.softcap * tanhf(logit / row.softcap);
      const float larger = logit > max[g] ? logit : max[g];
      const float shrink = expf(max[g] - larger);
      const float weight = expf(logit - larger);
      max[g] = larger;
      sum[g] = fmaf(sum[g], shrink, weight);
#pragma unroll
      for (int d = 0; d < kPer; ++d) values[g][d] = fmaf(values[g][d], shrink, weight * v[d]);
    }
  }

#pragma unroll
  for (int g = 0; g < kGroup; ++g) {
    if (g >= group) break;
    const std::int64_t query_head = std::int64_t{head} * group + g;
    float* const to = row.partial + (query_head * row.parts + part) * (row.v_dim + 2);
#pragma unroll
    for (int d = 0; d < kPer; ++d) {
      const int i = lane + d * kWarp;
      if (i < row.v_dim) to[i] = values[g][d];
    }
    if (lane == 0) {
      to[row.v_dim] = max[g];
      to[row.v_dim + 1] = sum[g];
    }
  }
}

//   grid [query_heads / kWarps]
__global__ void join_parts(DeviceRow row) {
  const int query_head =
      static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (query_head >= row.query_heads) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int stride = row.v_dim + 2;
  const float* const parts = row.partial + std::int64_t{query_head} * row.parts * stride;
  float max = row.sinks == nullptr ? -INFINITY : row.sinks[query_head];
  for (int p = 0; p < row.parts; ++p) {
    const float of = parts[std::int64_t{p} * stride + row.v_dim];
    max = of > max ? of : max;
  }
  // Nothing is read: no part has a maximum.
  const bool empty = max == -INFINITY;
  float sum = row.sinks == nullptr || empty ? 0 : expf(row.sinks[query_head] - max);
  for (int p = 0; p < row.parts && !empty; ++p) {
    const float* const of = parts + std::int64_t{p} * stride + row.v_dim;
    sum = fmaf(of[1], expf(of[0] - max), sum);
  }
  for (int i = lane; i < row.v_dim; i += kWarp) {
    float value = 0;
    for (int p = 0; p < row.parts && !empty; ++p) {
      const float* const of = parts + std::int64_t{p} * stride;
      value = fmaf(of[i], expf(of[row.v_dim] - max), value);
    }
    row.output[std::int64_t{query_head} * row.v_dim + i] = empty ? 0 : value / sum;
  }
  if (lane == 0) row.lse[query_head] = empty ? -INFINITY : max + logf(sum);
}

void launch(void (*kernel)(DeviceRow), dim3 grid, const DeviceRow& row, CUstream_st* stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(kWarps * kWarp);
  config.stream = stream;
  KVSPAN_REPLAY_CHECK(cudaLaunchKernelEx(&config, kernel, row));
}

template <int kGroup>
void launch_part(const DeviceRow& row, CUstream_st* stream) {
  const dim3 grid(static_cast<unsigned>((row.parts + kWarps - 1) / kWarps),
                  static_cast<unsigned>(row.heads));
  const int dim = row.k_dim > row.v_dim ? row.k_dim : row.v_dim;
  if (dim <= 2 * kWarp)
    launch(attend_part<kGroup, 2>, grid, row, stream);
  else if (dim <= 4 * kWarp)
    launch(attend_part<kGroup, 4>, grid, row, stream);
  else
    launch(attend_part<kGroup, 8>, grid, row, stream);
}

}  // namespace

void launch_decode_row(const DeviceRow& row, CUstream_st* stream) {
  const int group = row.query_heads / row.heads;
  if (group == 1)
    launch_part<1>(row, stream);
  else if (group <= 4)
    launch_part<4>(row, stream);
  else if (group <= 8)
    launch_part<8>(row, stream);
  else
    launch_part<kMostGroup>(row, stream);
  launch(join_parts, dim3(static_cast<unsigned>((row.query_heads + kWarps - 1) / kWarps)), row,
         stream);
}

}  // namespace kvspan::gpu_replay
