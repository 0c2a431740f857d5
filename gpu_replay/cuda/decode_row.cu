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
// head together, a warp each. 16-bit and 8-bit formats and codes of 1 to 8 bits become float in
// registers; scales that keys of several entries share stay there until the next such group.
// Source: Milakov and Gimelshein, Online normalizer calculation for softmax (2018); Dao et al.,
// Flash-Decoding (2023).
#include <cmath>
#include <cstdint>
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

// The fifteen bits of fp16 below the sign, and the seven of e4m3, put where a float has the end of
// its exponent and the top of its mantissa, are the number times a power of two, subnormals too.
__device__ float float_of_half(unsigned bits) {
  const float size = __uint_as_float((bits & 0x7fffU) << 13U) * 0x1p112F;
  return (bits & 0x8000U) != 0 ? -size : size;
}
__device__ float float_of_e4m3(unsigned bits) {
  const float size = __uint_as_float((bits & 0x7fU) << 20U) * 0x1p120F;
  return (bits & 0x80U) != 0 ? -size : size;
}
__device__ float float_of_16(unsigned bits, Element element) {
  return element == Element::f16 ? float_of_half(bits) : __uint_as_float(bits << 16U);
}

// Element `i` of a vector that begins where its type may.
__device__ float element_at(const unsigned char* from, int i, Element element, float scale) {
  if (element == Element::f32) return reinterpret_cast<const float*>(from)[i];
  if (element == Element::fp8) return float_of_e4m3(from[i]) * scale;
  return float_of_16(reinterpret_cast<const unsigned short*>(from)[i], element);
}

// The same wherever it begins, byte by byte.
__device__ unsigned two_bytes(const unsigned char* from) {
  return unsigned{from[0]} | unsigned{from[1]} << 8U;
}
__device__ float unaligned_at(const unsigned char* from, int i, Element element, float scale) {
  if (element == Element::fp8) return float_of_e4m3(from[i]) * scale;
  if (element != Element::f32) return float_of_16(two_bytes(from + 2 * i), element);
  return __uint_as_float(two_bytes(from + 4 * i) | two_bytes(from + 4 * i + 2) << 16U);
}

__device__ unsigned code_at(const unsigned char* codes, int i, int bits) {
  return unsigned{codes[i * bits / 8]} >> static_cast<unsigned>(i * bits % 8) & ((1U << bits) - 1U);
}
__device__ int bytes_of_codes(const VectorFormat& format, int dim) {
  return (dim * format.bits + 7) / 8;
}

__device__ int bytes_of_element(Element element) {
  return element == Element::f32 ? 4 : element == Element::fp8 ? 1 : 2;
}
__device__ int bytes_of_vector(const VectorFormat& format, int dim, Element element) {
  const int codes = bytes_of_codes(format, dim);
  if (format.kind == VectorFormat::Kind::channels) return format.left * bytes_of_element(element);
  if (format.kind == VectorFormat::Kind::entry_groups) return codes + dim * 4 / format.group;
  if (format.kind == VectorFormat::Kind::channel_groups)
    return codes + (dim + format.group - 1) / format.group * 4;
  return dim * bytes_of_element(element);
}

// at: in the slots of all heads.
__device__ const unsigned char* entry_at(const DeviceRow& row, int head, std::int64_t at) {
  const std::int64_t slot = row.slots[at];
  const std::int64_t block = row.blocks[row.block_begin[head] + slot / row.block_size];
  return reinterpret_cast<const unsigned char*>(block + slot % row.block_size * row.slot_bytes);
}

// Number `i` of a vector of any format but entry_groups.
//   channel  [dim] see VectorCoding; null: all are there
__device__ float number_at(const unsigned char* from, int i, int dim, const VectorFormat& format,
                           Element element, float scale, const std::int16_t* channel) {
  if (format.kind == VectorFormat::Kind::whole) return unaligned_at(from, i, element, scale);
  if (format.kind == VectorFormat::Kind::channels)
    return channel[i] < 0 ? 0 : unaligned_at(from, channel[i], element, scale);
  const unsigned char* const pair = from + bytes_of_codes(format, dim) + i / format.group * 4;
  return fmaf(static_cast<float>(code_at(from, i, format.bits)), float_of_half(two_bytes(pair)),
              float_of_half(two_bytes(pair + 2)));
}

// A lane's numbers of an entry that is whole.
template <int kPer>
__device__ void read_whole(const DeviceRow& row, int head, std::int64_t at, int lane,
                           float (&k)[kPer], float (&v)[kPer]) {
  const unsigned char* const key = entry_at(row, head, at);
  const unsigned char* const value = key + std::int64_t{row.k_dim} * bytes_of_element(row.element);
#pragma unroll
  for (int d = 0; d < kPer; ++d) {
    const int i = lane + d * kWarp;
    k[d] = i < row.k_dim ? element_at(key, i, row.element, row.k_scale[head]) : 0;
    v[d] = i < row.v_dim ? element_at(value, i, row.element, row.v_scale[head]) : 0;
  }
}

// Scales and zeros of a lane's channels that a group of entries shares.
template <int kPer>
struct GroupScales {
  std::int64_t first = -1;  // of its entries, in the slots of all heads
  float scale[kPer], zero[kPer];

  // Byte b of the table [k_dim][scale, zero] lies in entry b / share of the group.
  __device__ void read(const DeviceRow& row, int head, std::int64_t group_first, int lane,
                       const VectorFormat& format) {
    if (first == group_first) return;
    first = group_first;
    const int share = row.k_dim * 4 / format.group;
    const int codes = bytes_of_codes(format, row.k_dim);
    const auto byte_at = [&](int b) -> unsigned {
      return entry_at(row, head, group_first + b / share)[codes + b % share];
    };
#pragma unroll
    for (int d = 0; d < kPer; ++d) {
      const int at = (lane + d * kWarp) * 4;
      if (at >= row.k_dim * 4) continue;
      scale[d] = float_of_half(byte_at(at) | byte_at(at + 1) << 8U);
      zero[d] = float_of_half(byte_at(at + 2) | byte_at(at + 3) << 8U);
    }
  }
};

// A lane's numbers of an entry that may be written in any format.
template <int kPer>
__device__ void read_coded(const DeviceRow& row, int head, std::int64_t at, int lane,
                           GroupScales<kPer>& group, float (&k)[kPer], float (&v)[kPer]) {
  const EntryFormat format = row.formats[row.format[at]];
  const unsigned char* const key = entry_at(row, head, at);
  const unsigned char* const value = key + bytes_of_vector(format.k, row.k_dim, row.element);
  const std::int16_t* const channel =
      row.channel == nullptr ? nullptr : row.channel + std::int64_t{head} * row.k_dim;
  const bool grouped = format.k.kind == VectorFormat::Kind::entry_groups;
  if (grouped) group.read(row, head, at - row.place[at], lane, format.k);
#pragma unroll
  for (int d = 0; d < kPer; ++d) {
    const int i = lane + d * kWarp;
    k[d] = v[d] = 0;
    if (i < row.k_dim) {
      k[d] = grouped
                 ? fmaf(static_cast<float>(code_at(key, i, format.k.bits)), group.scale[d],
                        group.zero[d])
                 : number_at(key, i, row.k_dim, format.k, row.element, row.k_scale[head], channel);
    }
    if (i < row.v_dim)
      v[d] = number_at(value, i, row.v_dim, format.v, row.element, row.v_scale[head], nullptr);
  }
}

// kGroup: query heads of a head at most; kPer: dimensions of a lane at most; kCoded: entries may be
// in any format, which takes nearly twice the registers.
//   grid [parts / kWarps, heads]
template <int kGroup, int kPer, bool kCoded>
__global__ void attend_part(DeviceRow row) {
  const int part = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (part >= row.parts) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int head = static_cast<int>(blockIdx.y);
  const int group = row.query_heads / row.heads;
  const std::int64_t first = row.read_begin[head];
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

  GroupScales<kPer> scales;
  for (std::int64_t at = begin; at < end; ++at) {
    float k[kPer], v[kPer];
    if constexpr (kCoded)
      read_coded(row, head, first + at, lane, scales, k, v);
    else
      read_whole(row, head, first + at, lane, k, v);
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

template <int kGroup, bool kCoded>
void launch_part(const DeviceRow& row, CUstream_st* stream) {
  const dim3 grid(static_cast<unsigned>((row.parts + kWarps - 1) / kWarps),
                  static_cast<unsigned>(row.heads));
  const int dim = row.k_dim > row.v_dim ? row.k_dim : row.v_dim;
  if (dim <= 2 * kWarp)
    launch(attend_part<kGroup, 2, kCoded>, grid, row, stream);
  else if (dim <= 4 * kWarp)
    launch(attend_part<kGroup, 4, kCoded>, grid, row, stream);
  else
    launch(attend_part<kGroup, 8, kCoded>, grid, row, stream);
}

void launch_whole(const DeviceRow& row, CUstream_st* stream) {
  const int group = row.query_heads / row.heads;
  if (group == 1)
    launch_part<1, false>(row, stream);
  else if (group <= 4)
    launch_part<4, false>(row, stream);
  else if (group <= 8)
    launch_part<8, false>(row, stream);
  else
    launch_part<kMostGroup, false>(row, stream);
}

// Fewer kinds: they take long to compile.
void launch_coded(const DeviceRow& row, CUstream_st* stream) {
  if (row.query_heads / row.heads <= 4)
    launch_part<4, true>(row, stream);
  else
    launch_part<kMostGroup, true>(row, stream);
}

}  // namespace

void launch_decode_row(const DeviceRow& row, CUstream_st* stream) {
  if (row.formats == nullptr)
    launch_whole(row, stream);
  else
    launch_coded(row, stream);
  launch(join_parts, dim3(static_cast<unsigned>((row.query_heads + kWarps - 1) / kWarps)), row,
         stream);
}

}  // namespace kvspan::gpu_replay
