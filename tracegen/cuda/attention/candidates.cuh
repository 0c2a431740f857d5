// SPDX-License-Identifier: Apache-2.0
// The list of candidates for a row's largest probabilities: collected, cut, kept.
#pragma once

#include "tracegen/cuda/attention/shape.cuh"

namespace kvspan::tracegen::tiled_attention {

__device__ inline int warp_sum(int x) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kWholeWarp, x, lanes);
  return x;
}

// Ordered as (score, lower key): the sign bit of a float reverses the order of the others.
__device__ inline Candidate make_candidate(float score, std::int64_t key) {
  const unsigned bits = __float_as_uint(score);
  const unsigned ordered = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
  return (Candidate{ordered} << 32) | static_cast<unsigned>(~key);
}
__device__ inline float candidate_score(Candidate candidate) {
  const auto ordered = static_cast<unsigned>(candidate >> 32);
  return __uint_as_float((ordered & 0x80000000U) != 0 ? ordered & 0x7fffffffU : ~ordered);
}
__device__ inline std::int32_t candidate_key(Candidate candidate) {
  return static_cast<std::int32_t>(~static_cast<unsigned>(candidate));
}

// A value that at least `least` and at most `most` of the candidates reach, by one warp; candidates
// are all different, so bisection ends. REQUIRES: 0 < least <= most, least <= count.
__device__ inline Candidate find_cut(const Candidate* list, int count, int least, int most) {
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
__device__ inline int keep_candidates(const Candidate* list, int count, Candidate cut,
                                      Candidate* to) {
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

}  // namespace kvspan::tracegen::tiled_attention
