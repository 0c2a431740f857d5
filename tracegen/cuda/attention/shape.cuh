// SPDX-License-Identifier: Apache-2.0
// What the kernels of attention.cu are told, and how they cut the problem into tiles. The kernels
// that depend on the type and on the head size are compiled in files of their own, side by side:
// the bodies of AttentionKernels are in kernels.cuh, and dHEAD_TYPE.cu says which.
#pragma once

#include <cstdint>
#include <limits>
#include <numbers>

#include "tracegen/cuda/kernel.h"

namespace kvspan::tracegen::tiled_attention {

inline constexpr int kWarp = 32;
inline constexpr int kWarpRows = 16;  // of a tile, per warp
inline constexpr int kMostKeys = 64;  // of a tile
inline constexpr int kSlack = 256;
inline constexpr float kNothing = -std::numeric_limits<float>::infinity();
inline constexpr float kLowest = std::numeric_limits<float>::lowest();
inline constexpr float kLog2E = std::numbers::log2e_v<float>;
inline constexpr float kLn2 = std::numbers::ln2_v<float>;

using Candidate = unsigned long long;  // larger is better: score, then lower key

// Tiles are sized so that two or more blocks share a multiprocessor (fp16 up to a head of 128).
template <typename T, int kDim>
struct Tiles {
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
  static constexpr int kKeys = kRowBytes <= 256 ? kMostKeys : kMostKeys / 2;
  static constexpr int kWarps = kRowBytes <= 512 ? 4 : 2;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kRows = kWarps * kWarpRows;
  // 16 bytes more than a row: eight rows then start in eight different groups of banks.
  static constexpr int kStride = kDim + 16 / static_cast<int>(sizeof(T));
  static constexpr int bytes(int rows) { return rows * kStride * static_cast<int>(sizeof(T)); }
};

// What all kernels know of the problem. Packed row p of head `h` is row p / pack of query head
// h + p % pack.
struct Shape {
  int query_heads = 0, kv_heads = 0, head_dim = 0;
  int pack = 0;
  std::int64_t first = 0, rows = 0, keys = 0, window = 0;
  float scale = 0;  // on q.k, to units of log2
  const std::uint8_t* visible = nullptr;
  std::int64_t visible_stride = 0;

  __device__ std::int64_t row_of(std::int64_t p) const { return pack == 1 ? p : p / pack; }
  __device__ std::int64_t slot_of(std::int64_t p, int head) const {  // in [rows, query_heads]
    return row_of(p) * query_heads + head + (p - row_of(p) * pack);
  }
  __device__ std::int64_t lowest_key(std::int64_t row) const {
    return window > 0 && row >= window ? row - window + 1 : 0;
  }
  __device__ bool reads(std::int64_t row, std::int64_t key, int kv_head) const {
    return key <= row && key >= lowest_key(row) &&
           (visible == nullptr || visible[kv_head * visible_stride + key] != 0);
  }
};

struct Candidates {
  Candidate* list = nullptr;  // [rows, query_heads, capacity]
  int* count = nullptr;       // [rows, query_heads]
  int capacity = 0, top_k = 0;
};

// One call of attention_cuda(), in device memory.
struct Sweep {
  Shape shape;
  const void *q = nullptr, *k = nullptr, *v = nullptr;
  float* out = nullptr;
  float* lse2 = nullptr;  // null: nothing but `out` is asked for
  Candidates candidates;
  float* column_mass = nullptr;
  std::int64_t column_stride = 0;
};

template <typename T, int kDim>
struct AttentionKernels {
  // Of q, k and v tiles; sum_columns has no v.
  static constexpr int kSharedBytes =
      Tiles<T, kDim>::bytes(Tiles<T, kDim>::kRows + 2 * Tiles<T, kDim>::kKeys);
  // More than 48 KiB of shared memory are to be asked for, once. Errors: DeviceError if this build
  // has no code for the device.
  static void reserve_shared();
  static void attend(const Sweep& sweep, cudaStream_t stream);
  static void sum_columns(const Sweep& sweep, cudaStream_t stream);
};

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline dim3 grid_of(std::int64_t x, std::int64_t y = 1) {
  return {static_cast<unsigned>(x), static_cast<unsigned>(y)};
}

}  // namespace kvspan::tracegen::tiled_attention
