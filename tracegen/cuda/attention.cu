// SPDX-License-Identifier: Apache-2.0
// Attention that emits, beside its output, the log-sum-exp and the largest probabilities of each
// row, and the mass that each key received; no more than one tile of scores exists at a time.
//
// A block owns a tile of rows of one KV head: rows r of all query heads that read it, so that a
// tile is full even when one token is decoded and K and V are read once a group (GQA):
//
//     packed row   0        1        ..  group    group+1        K, V tiles, last to first
//     is           r0 head0 r0 head1 ..  r1 head0 r1 head1       [ ... ][ ... ][ ..\]  diagonal
//
// A warp holds 16 packed rows of the accumulators in registers, in the fragment layout of mma (see
// kernel.h): lane (g, t) has rows g and g + 8, columns 2t and 2t + 1 of every 8. Types without
// tensor cores (fp32, or any before sm_80) multiply by FMA in the same layout; all that follows a
// product is one text. Scores are kept in units of log2: exp2(z), one instruction, is exp.
//
// Largest probabilities. A softmax is monotonic, so they are the largest scores, and the final sum
// is not needed to select them. Each row has a threshold, at first none, and a list of candidates
// in device memory, longer than K by kSlack:
//
//     score >= threshold?  -- no -->  forgotten: one comparison, the common case
//            | yes
//            v
//     [ candidates 0 .. K .. K + kSlack ]  full?  cut: bisect to a score that K candidates reach,
//                                                drop those below it, and it is the new threshold
//
// Keys come last to first, nearest first, which by locality raises the threshold early; on equal
// scores the key that comes later is lower and belongs before those seen, hence >= and no special
// rule. Of n keys in random order about K ln(n / K) become candidates (310 of 8,192 for K = 64):
// one or two cuts a row, each of about ten passes over some 300 candidates by a warp. In the worst
// order (scores falling with the key, or all equal) each key is one, and a cut comes every kSlack /
// 2 keys or so. A second kernel, a warp a row, takes the exact K of what is left, sorts them, and
// knows by then the sum: p = exp2(z - lse).
//
// Column masses need that sum as well, for each score: they cost a second sweep that recomputes q.k
// (half of the products) and is launched only when they are asked for. A block owns a tile of keys
// and goes over the rows, so that no two blocks add to one number and the bits never change.
//
// Source: Dao, FlashAttention-2 (2023), sec. 3.1; Milakov and Gimelshein, Online normalizer
// calculation for softmax (2018).
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>

#include "sim/base/error.h"
#include "tracegen/cuda/attention.h"
#include "tracegen/cuda/kernel.h"

namespace kvspan::tracegen {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpRows = 16;  // of a tile, per warp
constexpr int kMostKeys = 64;  // of a tile
constexpr int kSlack = 256;
constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kLog2E = std::numbers::log2e_v<float>;
constexpr float kLn2 = std::numbers::ln2_v<float>;

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

// Of the four lanes that share two rows.
__device__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 2));
}
__device__ float quad_sum(float x) {
  x += __shfl_xor_sync(kWholeWarp, x, 1);
  return x + __shfl_xor_sync(kWholeWarp, x, 2);
}
__device__ int warp_sum(int x) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kWholeWarp, x, lanes);
  return x;
}

// Ordered as (score, lower key): the sign bit of a float reverses the order of the others.
__device__ Candidate make_candidate(float score, std::int64_t key) {
  const unsigned bits = __float_as_uint(score);
  const unsigned ordered = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
  return (Candidate{ordered} << 32) | static_cast<unsigned>(~key);
}
__device__ float candidate_score(Candidate candidate) {
  const auto ordered = static_cast<unsigned>(candidate >> 32);
  return __uint_as_float((ordered & 0x80000000U) != 0 ? ordered & 0x7fffffffU : ~ordered);
}
__device__ std::int32_t candidate_key(Candidate candidate) {
  return static_cast<std::int32_t>(~static_cast<unsigned>(candidate));
}

// A value that at least `least` and at most `most` of the candidates reach, by one warp; candidates
// are all different, so bisection ends. REQUIRES: 0 < least <= most, least <= count.
__device__ Candidate find_cut(const Candidate* list, int count, int least, int most) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Candidate low = ~Candidate{0};  // reached by `kept`, at least `least`
  Candidate high = 0;             // the largest
  for (int i = lane; i < count; i += kWarp) {
    low = min(low, list[i]);
    high = max(high, list[i]);
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    low = min(low, __shfl_xor_sync(kWholeWarp, low, lanes));
    high = max(high, __shfl_xor_sync(kWholeWarp, high, lanes));
  }
  int kept = count;
  while (kept > most) {
    const Candidate middle = low + (high - low) / 2 + 1;  // above low, at most high
    int reached = 0;
    for (int i = lane; i < count; i += kWarp) reached += list[i] >= middle ? 1 : 0;
    reached = warp_sum(reached);
    if (reached >= least) {
      low = middle;
      kept = reached;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Moves the candidates that reach `cut` to the front of `to`, which may be `list`; returns how
// many.
__device__ int keep_candidates(const Candidate* list, int count, Candidate cut, Candidate* to) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int kept = 0;
  for (int begin = 0; begin < count; begin += kWarp) {
    const bool there = begin + lane < count;
    const Candidate candidate = there ? list[begin + lane] : 0;
    const bool keep = there && candidate >= cut;
    const unsigned keeping = __ballot_sync(kWholeWarp, keep);  // after all lanes have read
    if (keep) to[kept + __popc(keeping & ((1U << lane) - 1))] = candidate;
    kept += __popc(keeping);
  }
  __syncwarp();
  return kept;
}

// The candidates of the two rows of a lane. Counts and thresholds are equal in the four lanes.
struct RowCandidates {
  Candidate* list[2];
  int count[2];
  float threshold[2];
};

// Appends the scores of a tile that reach the threshold of their row; cuts lists that could not
// take another tile.
template <int kKeys>
__device__ void collect(const float (&scores)[kKeys / 8][4], std::int64_t tile_key, int capacity,
                        int top_k, RowCandidates& rows) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int mine = 0;  // of both rows, 16 bits each
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
    for (int c = 0; c < 4; ++c) mine += scores[j][c] >= rows.threshold[c / 2] ? 1 << c / 2 * 16 : 0;
  if (!__any_sync(kWholeWarp, mine != 0)) return;

  int before = 0, total = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int other = __shfl_sync(kWholeWarp, mine, lane / 4 * 4 + i);
    before += i < lane % 4 ? other : 0;
    total += other;
  }
  int at[2] = {rows.count[0] + (before & 0xffff), rows.count[1] + (before >> 16)};
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (scores[j][c] >= rows.threshold[c / 2])
        rows.list[c / 2][at[c / 2]++] =
            make_candidate(scores[j][c], tile_key + j * 8 + lane % 4 * 2 + c % 2);
  rows.count[0] += total & 0xffff;
  rows.count[1] += total >> 16;
  __syncwarp();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    unsigned full = __ballot_sync(kWholeWarp, rows.count[half] > capacity - kMostKeys);
    while (full != 0) {
      const int owner = __ffs(static_cast<int>(full)) - 1;
      full &= ~(0xfU << owner);  // its quad
      const auto address = reinterpret_cast<std::uintptr_t>(rows.list[half]);
      auto* const list = reinterpret_cast<Candidate*>(
          __shfl_sync(kWholeWarp, static_cast<unsigned long long>(address), owner));
      const int count = __shfl_sync(kWholeWarp, rows.count[half], owner);
      const Candidate cut = find_cut(list, count, top_k, top_k + kMostKeys);
      const int kept = keep_candidates(list, count, cut, list);
      if (lane / 4 == owner / 4) {
        rows.count[half] = kept;
        rows.threshold[half] = candidate_score(cut);
      }
    }
  }
}

// Output, log-sum-exp and candidates of kRows packed rows of a KV head.
//   grid [packed rows / kRows, kv_heads], block kThreads; shared memory q, k and v tiles
//   q    [rows, query_heads, head_dim]; k, v [keys, kv_heads, head_dim]
//   out  [rows, query_heads, head_dim]; lse2 [rows, query_heads], in units of log2
template <typename T, int kDim, bool kCapture>
__global__ void __launch_bounds__(Tiles<T, kDim>::kThreads)
    attend(Shape shape, const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
           float* __restrict__ out, float* __restrict__ lse2, Candidates candidates) {
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

// The exact top_k of each row's candidates, sorted, by one warp a row.
//   grid [rows * query_heads / warps]; shared memory `padded` candidates a warp, a power of 2
__global__ void finish_top_k(std::int64_t rows, Candidates candidates, int padded,
                             const float* __restrict__ lse2, float* __restrict__ prob,
                             std::int32_t* __restrict__ index) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = std::int64_t{blockIdx.x} * (blockDim.x / kWarp) + warp;
  if (row >= rows) return;
  Candidate* const best = reinterpret_cast<Candidate*>(dynamic_shared()) + warp * padded;
  const Candidate* const list = candidates.list + row * candidates.capacity;
  const int count = candidates.count[row];
  const int some = min(count, candidates.top_k);
  const int kept =
      some == 0 ? 0 : keep_candidates(list, count, find_cut(list, count, some, some), best);
  for (int i = kept + lane; i < padded; i += kWarp) best[i] = 0;
  __syncwarp();
  // Bitonic, descending; zeros are below every candidate.
  for (int run = 2; run <= padded; run *= 2) {
    for (int apart = run / 2; apart > 0; apart /= 2) {
      for (int i = lane; i < padded / 2; i += kWarp) {
        const int a = i / apart * apart * 2 + i % apart;
        const int b = a + apart;
        const Candidate x = best[a];
        const Candidate y = best[b];
        if ((a & run) == 0 ? x < y : x > y) {
          best[a] = y;
          best[b] = x;
        }
      }
      __syncwarp();
    }
  }
  for (int i = lane; i < candidates.top_k; i += kWarp) {
    const std::int64_t at = row * candidates.top_k + i;
    if (prob != nullptr) prob[at] = i < kept ? exp2f(candidate_score(best[i]) - lse2[row]) : 0;
    if (index != nullptr) index[at] = i < kept ? candidate_key(best[i]) : -1;
  }
}

// lse [rows * query_heads] in nats.
__global__ void finish_lse(std::int64_t rows, const float* __restrict__ lse2,
                           float* __restrict__ lse) {
  const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row < rows) lse[row] = lse2[row] * kLn2;
}

// Adds the probabilities that kKeys keys receive from all rows of one query head.
//   grid [keys / kKeys, query_heads], block kThreads; shared memory q and k tiles; shape.pack = 1
//   column_mass [query_heads, stride]
template <typename T, int kDim>
__global__ void __launch_bounds__(Tiles<T, kDim>::kThreads)
    sum_columns(Shape shape, const T* __restrict__ q, const T* __restrict__ k,
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

// ---- Launchers ----------------------------------------------------------------------------------

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

dim3 grid_of(std::int64_t x, std::int64_t y = 1) {
  return {static_cast<unsigned>(x), static_cast<unsigned>(y)};
}

int candidate_capacity(int top_k) {
  return static_cast<int>(ceil_div(top_k, kWarp)) * kWarp + kSlack;
}

// Parts of the workspace, each aligned to 16 bytes.
struct Workspace {
  std::int64_t lse2 = 0, count = 0, list = 0, bytes = 0;  // offsets
};
Workspace workspace_of(const AttentionProblem& p, int top_k) {
  const std::int64_t slots = ceil_div(p.rows * p.query_heads, 4) * 4;
  Workspace w;
  w.count = w.lse2 + slots * static_cast<std::int64_t>(sizeof(float));
  w.list = w.count + (top_k > 0 ? slots : 0) * static_cast<std::int64_t>(sizeof(int));
  w.bytes = w.list + (top_k > 0 ? slots * candidate_capacity(top_k) : 0) *
                         static_cast<std::int64_t>(sizeof(Candidate));
  return w;
}

template <typename T, int kDim>
int attend_shared_bytes() {
  using Tile = Tiles<T, kDim>;
  return Tile::bytes(Tile::kRows + 2 * Tile::kKeys);
}
template <typename T, int kDim>
int sum_columns_shared_bytes() {
  using Tile = Tiles<T, kDim>;
  return Tile::bytes(Tile::kRows + Tile::kKeys);
}

// More than 48 KiB of shared memory are to be asked for, once. Errors: DeviceError if there are not
// so many, or no code for the device.
template <typename T, int kDim>
void reserve_shared(int head_dim) {
  const int bytes = attend_shared_bytes<T, kDim>();
  int device = 0, most = 0;
  KVSPAN_CUDA_CHECK(cudaGetDevice(&device));
  KVSPAN_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (bytes > most)
    throw DeviceError("attention with head_dim " + std::to_string(head_dim) + " needs " +
                      std::to_string(bytes) + " bytes of shared memory a block; " + device_name() +
                      " has " + std::to_string(most));
  const auto reserve = [](auto* kernel, int kernel_bytes) {
    KVSPAN_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel_bytes));
  };
  reserve(attend<T, kDim, false>, bytes);
  reserve(attend<T, kDim, true>, bytes);
  reserve(sum_columns<T, kDim>, sum_columns_shared_bytes<T, kDim>());
}

template <typename T, int kDim>
void launch_attention(const AttentionProblem& p, const DeviceAttentionTensors& t,
                      cudaStream_t stream) {
  using Tile = Tiles<T, kDim>;
  const T* const q = static_cast<const T*>(t.q);
  const T* const k = static_cast<const T*>(t.k);
  const T* const v = static_cast<const T*>(t.v);
  const bool capture = t.top_k > 0 || t.lse != nullptr || t.column_mass != nullptr;
  Shape shape{.query_heads = p.query_heads,
              .kv_heads = p.kv_heads,
              .head_dim = p.head_dim,
              .pack = p.query_heads / p.kv_heads,
              .first = p.first,
              .rows = p.rows,
              .keys = p.first + p.rows,
              .window = p.window,
              .scale = p.scale * kLog2E,
              .visible = p.visible,
              .visible_stride = t.visible_stride > 0 ? t.visible_stride : p.first + p.rows};
  const Workspace parts = workspace_of(p, t.top_k);
  auto* const base = static_cast<unsigned char*>(t.workspace);
  float* const lse2 = capture ? reinterpret_cast<float*>(base + parts.lse2) : nullptr;
  Candidates candidates;
  if (t.top_k > 0)
    candidates = {.list = reinterpret_cast<Candidate*>(base + parts.list),
                  .count = reinterpret_cast<int*>(base + parts.count),
                  .capacity = candidate_capacity(t.top_k),
                  .top_k = t.top_k};

  auto* const kernel = capture ? attend<T, kDim, true> : attend<T, kDim, false>;
  launch(kernel, grid_of(ceil_div(p.rows * shape.pack, Tile::kRows), p.kv_heads), Tile::kThreads,
         static_cast<std::size_t>(attend_shared_bytes<T, kDim>()), stream, shape, q, k, v, t.out,
         lse2, candidates);

  const std::int64_t slots = p.rows * p.query_heads;
  if (t.lse != nullptr)
    launch(finish_lse, grid_of(ceil_div(slots, 256)), 256, 0, stream, slots, lse2, t.lse);
  if (t.top_k > 0) {
    int padded = kWarp;
    while (padded < t.top_k) padded *= 2;
    constexpr int kFinishWarps = 4;
    launch(finish_top_k, grid_of(ceil_div(slots, kFinishWarps)), kFinishWarps * kWarp,
           static_cast<std::size_t>(kFinishWarps * padded) * sizeof(Candidate), stream, slots,
           candidates, padded, lse2, t.prob, t.index);
  }
  if (t.column_mass != nullptr) {
    shape.pack = 1;
    launch(sum_columns<T, kDim>, grid_of(ceil_div(shape.keys, Tile::kKeys), p.query_heads),
           Tile::kThreads, static_cast<std::size_t>(sum_columns_shared_bytes<T, kDim>()), stream,
           shape, q, k, lse2, t.column_mass, t.column_stride);
  }
}

// Calls use.operator()<T, kDim>() as compiled for the type and the head size; head sizes between are
// padded with zeros in shared memory only.
template <typename Use>
void with_kernels(DeviceType type, int head_dim, const Use& use) {
  const auto with_dim = [&]<typename T>(T /*type*/) {
    if (head_dim <= 64) return use.template operator()<T, 64>();
    if (head_dim <= 128) return use.template operator()<T, 128>();
    return use.template operator()<T, 256>();
  };
  switch (type) {
    case DeviceType::f32:
      return with_dim(float{});
    case DeviceType::f16:
      return with_dim(__half{});
    case DeviceType::bf16:
      return with_dim(__nv_bfloat16{});
  }
}

}  // namespace

std::size_t attention_cuda_workspace(const AttentionProblem& problem, int top_k) {
  return static_cast<std::size_t>(workspace_of(problem, top_k).bytes);
}

void check_attention_cuda(DeviceType type, int head_dim, int top_k) {
  if (head_dim < 8 || head_dim > 256 || head_dim % 8 != 0)
    throw DeviceError("attention on a GPU takes a head_dim up to 256 in steps of 8, not " +
                      std::to_string(head_dim) + "; --device cpu takes it");
  if (top_k < 0 || top_k > kMostTopK)
    throw DeviceError("attention on a GPU emits up to " + std::to_string(kMostTopK) +
                      " probabilities a row, not " + std::to_string(top_k));
  with_kernels(type, head_dim, [&]<typename T, int kDim>() { reserve_shared<T, kDim>(head_dim); });
}

void attention_cuda(const AttentionProblem& problem, const DeviceAttentionTensors& tensors,
                    cudaStream_t stream) {
  check_attention_cuda(tensors.type, problem.head_dim, tensors.top_k);
  if (problem.rows == 0) return;
  with_kernels(tensors.type, problem.head_dim, [&]<typename T, int kDim>() {
    launch_attention<T, kDim>(problem, tensors, stream);
  });
}

}  // namespace kvspan::tracegen
