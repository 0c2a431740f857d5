// SPDX-License-Identifier: Apache-2.0
// Attention of many rows under many death vectors, of one layer.
//
// score_rows: a block owns 64 rows of one query head and walks over the keys that they read, 64 at
// a time. One product q k^T serves all vectors: its logits go to shared memory, and there a thread
// owns a row and a half of the vectors, and adds exp(logit - max) of the keys that are there:
//
//     keys of the tile          1 1 0 1 | 0 0 1 1 ...    a vector's bits, the same for all 64 rows
//     exp(logit - max) of a row e e e e | e e e e ...    16 at a time in registers
//
// so that a vector costs an addition a key and reads nothing. A key that dies inside the block's
// rows is in the bits of no row; it has a bit of its own, and each row looks at its death. There
// are few of these: a key dies once. The largest logit so far is each row's own, sums are kept in
// double between tiles, and vector 0, of which nobody dies, is the softmax's sum: where nothing has
// left, sums have its bits. The next tile of keys is on its way meanwhile.
//
// Outputs follow from these logits and sums (score_outputs.cu). Types without tensor cores (fp32)
// multiply by FMA in the layout of the fragments (tracegen/cuda/kernel.h).
// Source: Milakov and Gimelshein, Online normalizer calculation for softmax (2018); Dao,
// FlashAttention-2 (2023).
#include <cmath>
#include <cstdint>

#include "gpu_replay/cuda/score_tiles.cuh"

namespace kvspan::gpu_replay {
namespace {

using namespace score_tiles;

constexpr int kInRegisters = 16;  // terms of a row

// q k^T of 16 rows of q and a tile of keys.
template <typename T>
__device__ void multiply(const T* q, const T* k, int stride, int dim, float (&c)[kKeys / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) c[j][i] = 0;
  if constexpr (kTensorCores<T>) {
    for (int d = 0; d < dim; d += 16) {
      std::uint32_t a[4];
      load_tiles(a, q + lane % 16 * stride + d + lane / 16 * 8);
#pragma unroll
      for (int j = 0; j < kKeys / 8; j += 2) {
        std::uint32_t b[4];
        load_tiles(b, k + (j * 8 + lane / 16 * 8 + lane % 8) * stride + d + lane / 8 % 2 * 8);
        mma_16x8x16<T>(c[j], a, b[0], b[1]);
        mma_16x8x16<T>(c[j + 1], a, b[2], b[3]);
      }
    }
  } else {
    const T* const q0 = q + lane / 4 * stride;
    const T* const q1 = q0 + 8 * stride;
    const T* const k0 = k + lane % 4 * 2 * stride;
    for (int d = 0; d < dim; ++d) {
      const float a0 = widen(q0[d]), a1 = widen(q1[d]);
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float b = widen(k0[(j * 8 + i) * stride + d]);
          c[j][i] = fmaf(a0, b, c[j][i]);
          c[j][i + 2] = fmaf(a1, b, c[j][i + 2]);
        }
    }
  }
}

// Which keys of a tile a vector has: bits of keys 0 ... 31, 32 ... 63.
struct Bits {
  std::uint32_t all[2];   // for all rows of the block
  std::uint32_t some[2];  // dies inside them
};

// By whole warps, a vector each.
__device__ void find_bits(const DeviceScores& s, int query_head, int first, int vectors,
                          std::int64_t first_row, std::int64_t last_row, std::int64_t tile_key,
                          int slots, Bits* bits) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int m = static_cast<int>(threadIdx.x) / kWarp; m < slots; m += kWarps) {
    const bool there = m < vectors;
    const DeviceVector vector = there ? s.vector[first + m] : DeviceVector{};
    const std::uint32_t* const deaths = deaths_of(s, vector, query_head);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t death =
          there ? death_of(s, vector, deaths, tile_key + half * kWarp + lane) : 0U;
      const std::uint32_t all = __ballot_sync(kWholeWarp, death > last_row);
      const std::uint32_t some = __ballot_sync(kWholeWarp, death > first_row && death <= last_row);
      if (lane == 0) {
        bits[m].all[half] = all;
        bits[m].some[half] = some;
      }
    }
  }
}

// Logits of the block's rows and a tile's keys to shared memory; minus infinity where a row does
// not read.
template <typename T>
__device__ void put_logits(const DeviceScores& s, const T* q_tile, const T* k_tile, int stride,
                           const std::int64_t (&row)[2], std::int64_t tile_key, float* logits) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float c[kKeys / 8][4];
  multiply(q_tile + warp * 16 * stride, k_tile, stride, s.k_dim, c);
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = j * 8 + lane % 4 * 2 + i % 2;
      const std::int64_t key = tile_key + column;
      float z = c[j][i] * s.scale;
      if (s.softcap > 0) z = s.softcap * tanhf(z / s.softcap);
      if (key > row[i / 2] || key < lowest_key(s, row[i / 2])) z = kNone;
      logits[(warp * 16 + lane / 4 + i / 2 * 8) * (kKeys + 1) + column] = z;
    }
}

// Of a row, for kPer of the launch's vectors.
template <int kPer>
struct RowSums {
  float max = kNone;
  double total[kPer];

  __device__ void raise(const float* logits) {
    float larger = max;
    for (int i = 0; i < kKeys; ++i) larger = fmaxf(larger, logits[i]);
    if (larger == max) return;
    const double shrink = max == kNone ? 0 : static_cast<double>(expf(max - larger));
#pragma unroll
    for (int m = 0; m < kPer; ++m) total[m] *= shrink;
    max = larger;
  }

  // bits: of the first of these vectors.
  __device__ void add(const float* logits, const Bits* bits) {
    if (max == kNone) return;  // it reads none of the tiles so far
    float sum[kPer];
#pragma unroll
    for (int m = 0; m < kPer; ++m) sum[m] = 0;
#pragma unroll 1
    for (int at = 0; at < kKeys; at += kInRegisters) {
      float term[kInRegisters];
#pragma unroll
      for (int i = 0; i < kInRegisters; ++i) term[i] = expf(logits[at + i] - max);
#pragma unroll
      for (int m = 0; m < kPer; ++m) {
        const std::uint32_t there = bits[m].all[at / kWarp] >> (at % kWarp);
#pragma unroll
        for (int i = 0; i < kInRegisters; ++i) sum[m] += (there >> i & 1U) != 0 ? term[i] : 0.0F;
      }
    }
#pragma unroll
    for (int m = 0; m < kPer; ++m) total[m] += static_cast<double>(sum[m]);
  }

  // Keys that die inside the block's rows.
  __device__ void add_dying(const float* logits, const Bits& bits, int m,
                            const std::uint32_t* deaths, std::int64_t row, std::int64_t tile_key) {
    if (max == kNone) return;
    float sum = 0;
    for (int half = 0; half < 2; ++half) {
      for (std::uint32_t left = bits.some[half]; left != 0; left &= left - 1) {
        const int key = half * kWarp + __ffs(static_cast<int>(left)) - 1;
        if (row < static_cast<std::int64_t>(deaths[tile_key + key])) sum += expf(logits[key] - max);
      }
    }
#pragma unroll
    for (int i = 0; i < kPer; ++i)
      if (i == m) total[i] += static_cast<double>(sum);
  }
};

// Vectors [first, first + 2 kPer).
//   grid [rows / kRows, query_heads]; shared memory: see shared_bytes()
template <typename T, int kPer>
__global__ void __launch_bounds__(kThreads) score_rows(DeviceScores s, int first) {
  const int stride = tile_stride<T>(s.k_dim);
  T* const q_tile = reinterpret_cast<T*>(dynamic_shared());
  T* const k_tile = q_tile + kRows * stride;
  float* const logits = reinterpret_cast<float*>(k_tile + kKeys * stride);
  Bits* const bits = reinterpret_cast<Bits*>(logits + kRows * (kKeys + 1));
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int query_head = static_cast<int>(blockIdx.y);
  const int kv_head = query_head / (s.query_heads / s.kv_heads);
  const int vectors = min(s.vectors - first, 2 * kPer);

  // The last rows have the most keys: they start first, so that no block is late at the end.
  const std::int64_t begin = std::int64_t{gridDim.x - 1 - blockIdx.x} * kRows;
  const std::int64_t rows = min(s.rows - begin, std::int64_t{kRows});
  const std::int64_t first_row = s.row[begin];
  const std::int64_t last_row = s.row[begin + rows - 1];
  std::int64_t row[2];  // of this lane's fragments; -1: none, which reads nothing
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = warp * 16 + lane / 4 + half * 8;
    row[half] = r < rows ? s.row[begin + r] : -1;
  }
  const int mine = static_cast<int>(threadIdx.x) % kRows;  // row whose sums this thread has
  const int part = static_cast<int>(threadIdx.x) / kRows * kPer;
  const std::int64_t my_row = mine < rows ? s.row[begin + mine] : -1;
  float* const my_logits = logits + mine * (kKeys + 1);
  RowSums<kPer> sums;
#pragma unroll
  for (int m = 0; m < kPer; ++m) sums.total[m] = 0;

  const T* const q =
      static_cast<const T*>(s.q) + (begin * s.query_heads + query_head) * std::int64_t{s.k_dim};
  const T* const k = static_cast<const T*>(s.k) + std::int64_t{kv_head} * s.k_dim;
  const std::int64_t step = std::int64_t{s.kv_heads} * s.k_dim;
  const std::int64_t last_tile = last_row / kKeys;
  std::int64_t tile = lowest_key(s, first_row) / kKeys;
  load_tile(q_tile, stride, q, rows, std::int64_t{s.query_heads} * s.k_dim, s.k_dim);
  load_tile(k_tile, stride, k + tile * kKeys * step, s.tokens - tile * kKeys, step, s.k_dim);
  commit_copies();
  for (; tile <= last_tile; ++tile) {
    const std::int64_t tile_key = tile * kKeys;
    wait_copies<0>();
    __syncthreads();  // k_tile is there; logits and bits of the tile before are no longer read
    find_bits(s, query_head, first, vectors, first_row, last_row, tile_key, 2 * kPer, bits);
    put_logits(s, q_tile, k_tile, stride, row, tile_key, logits);
    __syncthreads();  // logits and bits are there, k_tile is no longer read
    if (tile < last_tile) {
      load_tile(k_tile, stride, k + (tile_key + kKeys) * step, s.tokens - tile_key - kKeys, step,
                s.k_dim);
    }
    commit_copies();
    if (s.logits != nullptr && first == 0) {
      float* const to = s.logits + (query_head * s.rows + begin) * s.stride + tile_key;
      for (int i = static_cast<int>(threadIdx.x); i < rows * kKeys; i += kThreads)
        to[i / kKeys * s.stride + i % kKeys] = logits[i / kKeys * (kKeys + 1) + i % kKeys];
    }
    sums.raise(my_logits);
    sums.add(my_logits, bits + part);
    for (int m = 0; m < kPer; ++m) {
      const Bits& of = bits[part + m];
      if ((of.some[0] | of.some[1]) == 0 || my_row < 0) continue;
      const DeviceVector vector = s.vector[first + part + m];
      sums.add_dying(my_logits, of, m, deaths_of(s, vector, query_head), my_row, tile_key);
    }
  }
  if (my_row < 0) return;
  const std::int64_t at = query_head * s.rows + begin + mine;
  if (part == 0) s.max[at] = sums.max;
#pragma unroll
  for (int m = 0; m < kPer; ++m) {
    if (part + m < vectors)
      s.sums[(first + part + m) * std::int64_t{s.query_heads} * s.rows + at] = sums.total[m];
  }
}

template <typename T, int kPer>
void launch_sums(const DeviceScores& s, int first, CUstream_st* stream) {
  const int bytes = (kRows + kKeys) * tile_stride<T>(s.k_dim) * static_cast<int>(sizeof(T)) +
                    kRows * (kKeys + 1) * static_cast<int>(sizeof(float)) +
                    2 * kPer * static_cast<int>(sizeof(Bits));
  allow_shared(score_rows<T, kPer>, bytes);
  launch(score_rows<T, kPer>, dim3(blocks(s.rows, kRows), static_cast<unsigned>(s.query_heads)),
         kThreads, static_cast<std::size_t>(bytes), stream, s, first);
}

template <typename T>
void launch_typed(const DeviceScores& s, CUstream_st* stream) {
  for (int first = 0; first < s.vectors; first += kScoreVectors) {
    const int left = s.vectors - first;
    if (left <= 8)
      launch_sums<T, 4>(s, first, stream);
    else if (left <= 32)
      launch_sums<T, 16>(s, first, stream);
    else
      launch_sums<T, kScoreVectors / 2>(s, first, stream);
  }
  if (s.outputs > 0) launch_outputs(s, stream);
}

}  // namespace

void launch_scores(const DeviceScores& scores, CUstream_st* stream) {
  with_element(scores.type, [&](auto element) { launch_typed<decltype(element)>(scores, stream); });
}

}  // namespace kvspan::gpu_replay
