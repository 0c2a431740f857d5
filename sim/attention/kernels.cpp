// SPDX-License-Identifier: Apache-2.0
// Idea: every loop vectorises over keys (or over columns of V), never along the sum of one element,
// so an element's order of operations is the same for any block shape, row count or remainder.
//
//             64 keys of a panel           logits(): a block of kRows x kVecs accumulators stays in
//   i     +----+----+----+----+            registers over the whole sum. Step i loads kVecs key
//   |     | v0 | v1 | v2 | v3 |            vectors and broadcasts kRows query values for
//   v     +----+----+----+----+            kRows * kVecs FMAs: 10 loads per 24 FMAs with AVX-512,
//   q[r]  | acc[r][0..3]      |            8 per 12 with AVX2, below the two loads and two FMAs per
//         +----+----+----+----+            cycle of the cores of today; a panel is read from L1.
//
// Sums over keys run in 16 virtual lanes on every target: lane l takes keys l, l + 16, l + 32 and
// l + 48 of a panel in fp32, adds that to its own fp64 sum, and a fixed tree adds the lanes at the
// end. So targets with FMA (AVX2, AVX-512, NEON) agree bit for bit.
#include "sim/attention/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sim/attention/kernels.cpp"
// clang-format off
#include "sim/attention/dispatch_targets.h"  // before Highway
#include <hwy/foreach_target.h>  // before highway.h
#include "sim/attention/kernels_inl.h"
#include <hwy/contrib/math/math-inl.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace kvspan::kernels::HWY_NAMESPACE {
// `keys` points to the block's first key in the panel, `key` is its number. Step i prefetches
// ahead[i * ahead_step].
template <int kRows, int kBlockVecs>
HWY_NOINLINE void dot_block(const float* const* q, int dim, const float* keys, const float* ahead,
                            std::ptrdiff_t ahead_step, float scale, float* const* out,
                            std::int64_t key) {
  const Floats d;
  V acc[kRows][kBlockVecs];
  const float* row[kRows];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    row[r] = q[r];
    HWY_UNROLL(8)
    for (int k = 0; k < kBlockVecs; ++k) acc[r][k] = hn::Zero(d);
    for (int k = 0; k < kBlockVecs * kLanes; k += 16) __builtin_prefetch(out[r] + key + k, 1);
  }
  for (std::ptrdiff_t i = 0; i < dim; ++i) {
    __builtin_prefetch(ahead, 0, 2);
    ahead += ahead_step;
    V v[kBlockVecs];
    HWY_UNROLL(8)
    for (int k = 0; k < kBlockVecs; ++k) v[k] = hn::LoadU(d, keys + i * kPanel + k * kLanes);
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const V s = hn::Set(d, row[r][i]);
      HWY_UNROLL(8)
      for (int k = 0; k < kBlockVecs; ++k) acc[r][k] = hn::MulAdd(s, v[k], acc[r][k]);
    }
  }
  const V factor = hn::Set(d, scale);
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int k = 0; k < kBlockVecs; ++k) {
      hn::StoreU(hn::Mul(acc[r][k], factor), d, out[r] + key + k * kLanes);
    }
  }
}

void cap_row(float* z, std::int64_t count, float softcap) {
  const Floats d;
  const V cap = hn::Set(d, softcap);
  for (std::int64_t j = 0; j < count; j += kLanes) {
    const V x = hn::Div(hn::LoadU(d, z + j), cap);
    hn::StoreU(hn::Mul(cap, hn::Tanh(d, x)), d, z + j);
  }
}

void logits(const float* const* q, std::int64_t rows, int dim, const float* panels,
            std::int64_t panel_begin, std::int64_t panel_end, float scale, float softcap,
            float* const* out) {
  constexpr int kBlockKeys = kVecs * kLanes;
  // While a panel is at work, each of its blocks brings a part of the next one into L2: without
  // that, the first blocks of a panel wait for memory and nothing overlaps.
  const std::int64_t blocks = (rows + kMaxRows - 1) / kMaxRows * (kPanel / kBlockKeys);
  const std::int64_t part =
      std::clamp<std::int64_t>(kPanel / std::max<std::int64_t>(blocks, 1), 1, 16);
  for (std::int64_t p = panel_begin; p < panel_end; ++p) {
    const float* const panel = panels + p * kPanel * dim;
    const bool more = p + 1 < panel_end;
    std::int64_t done = 0;
    for (int sub = 0; sub < kPanel; sub += kBlockKeys) {
      for_row_blocks(rows, [&]<int n>(std::int64_t r, Rows<n>) HWY_ATTR {
        const float* const ahead = more ? panel + (kPanel + done) * dim : panel;
        dot_block<n, kVecs>(q + r, dim, panel + sub, ahead, more ? part : 0, scale, out + r,
                            p * kPanel + sub);
        done = std::min(done + part, kPanel - part);
      });
    }
    if (softcap > 0) {
      for (std::int64_t r = 0; r < rows; ++r) cap_row(out[r] + p * kPanel, kPanel, softcap);
    }
  }
}

// A square of 4 keys x 4 channels, turned: rows of `keys` become rows of `panel`.
HWY_INLINE void pack_square(const float* keys, std::int64_t stride, float* panel) {
  const hn::FixedTag<float, 4> d;
  const auto a = hn::LoadU(d, keys);
  const auto b = hn::LoadU(d, keys + stride);
  const auto c = hn::LoadU(d, keys + 2 * stride);
  const auto e = hn::LoadU(d, keys + 3 * stride);
  const auto ac_low = hn::InterleaveLower(d, a, c);  // a0 c0 a1 c1
  const auto be_low = hn::InterleaveLower(d, b, e);
  const auto ac_high = hn::InterleaveUpper(d, a, c);
  const auto be_high = hn::InterleaveUpper(d, b, e);
  hn::StoreU(hn::InterleaveLower(d, ac_low, be_low), d, panel);  // a0 b0 c0 e0
  hn::StoreU(hn::InterleaveUpper(d, ac_low, be_low), d, panel + kPanel);
  hn::StoreU(hn::InterleaveLower(d, ac_high, be_high), d, panel + 2 * kPanel);
  hn::StoreU(hn::InterleaveUpper(d, ac_high, be_high), d, panel + 3 * kPanel);
}

void pack_keys(const float* keys, std::int64_t tokens, std::int64_t stride, int dim,
               float* panels) {
  constexpr int kStep = 16;  // a tile of 64 x 16 stays in L1 while its cache lines fill up
  for (std::int64_t first = 0; first < tokens; first += kPanel, panels += kPanel * dim) {
    const auto count = static_cast<std::ptrdiff_t>(std::min(kPanel, tokens - first));
    const float* const from = keys + first * stride;
    for (std::ptrdiff_t i0 = 0; i0 < dim; i0 += kStep) {
      const std::ptrdiff_t i1 = std::min<std::ptrdiff_t>(i0 + kStep, dim);
      const std::ptrdiff_t squares_i = i0 + (i1 - i0) / 4 * 4;
      const std::ptrdiff_t squares_j = count / 4 * 4;
      for (std::ptrdiff_t j = 0; j < squares_j; j += 4) {
        for (std::ptrdiff_t i = i0; i < squares_i; i += 4) {
          pack_square(from + j * stride + i, stride, panels + i * kPanel + j);
        }
      }
      for (std::ptrdiff_t j = 0; j < count; ++j) {
        const std::ptrdiff_t rest = j < squares_j ? squares_i : i0;
        for (std::ptrdiff_t i = rest; i < i1; ++i) panels[i * kPanel + j] = from[j * stride + i];
      }
      for (std::ptrdiff_t i = i0; i < i1; ++i) {
        std::fill(panels + i * kPanel + count, panels + (i + 1) * kPanel, 0.0F);
      }
    }
  }
}

// The 16 lanes of a sum over keys.
class LaneSums {
 public:
  HWY_INLINE explicit LaneSums(const double* from) {
    HWY_UNROLL(8)
    for (int k = 0; k < kLaneDoubles; ++k) {
      sums_[k] = hn::LoadU(Doubles(), from + k * kDoubleLanes);
    }
  }

  HWY_INLINE void add(const V (&lanes)[kLaneVecs]) {
    const HalfFloats dh;
    const Doubles dd;
    HWY_UNROLL(8)
    for (int k = 0; k < kLaneVecs; ++k) {
      sums_[2 * k] = hn::Add(sums_[2 * k], hn::PromoteTo(dd, hn::LowerHalf(dh, lanes[k])));
      sums_[2 * k + 1] = hn::Add(sums_[2 * k + 1], hn::PromoteTo(dd, hn::UpperHalf(dh, lanes[k])));
    }
  }

  HWY_INLINE void store(double* to) const {
    HWY_UNROLL(8)
    for (int k = 0; k < kLaneDoubles; ++k) {
      hn::StoreU(sums_[k], Doubles(), to + k * kDoubleLanes);
    }
  }

 private:
  VD sums_[kLaneDoubles];
};

// The lanes at [j, j + kLanes) that lie in [begin, end).
HWY_INLINE hn::Mask<Floats> lanes_inside(std::int64_t j, std::int64_t begin, std::int64_t end) {
  const Floats d;
  const auto first = static_cast<std::size_t>(std::clamp<std::int64_t>(begin - j, 0, kLanes));
  const auto last = static_cast<std::size_t>(std::clamp<std::int64_t>(end - j, 0, kLanes));
  return hn::AndNot(hn::FirstN(d, first), hn::FirstN(d, last));
}

template <bool kWhole>
HWY_INLINE void exp_panel(float* z, V max, std::int64_t begin, std::int64_t end, LaneSums& sums) {
  constexpr int kPanelVecs = kPanel / kLanes;
  constexpr int kTogether = kManyRegisters ? 4 : 2;  // interleaved, to hide the latency of FMAs
  const Floats d;
  V lanes[kLaneVecs];
  HWY_UNROLL(8)
  for (int k = 0; k < kLaneVecs; ++k) lanes[k] = hn::Zero(d);
  HWY_UNROLL(16)
  for (int v = 0; v < kPanelVecs; v += kTogether) {
    V terms[kTogether];
    HWY_UNROLL(8)
    for (int k = 0; k < kTogether; ++k) {
      terms[k] = hn::Sub(hn::LoadU(d, z + (v + k) * kLanes), max);
    }
    exp_nonpositive(terms);
    HWY_UNROLL(8)
    for (int k = 0; k < kTogether; ++k) {
      const int j = (v + k) * kLanes;
      if constexpr (!kWhole) {
        terms[k] = hn::IfThenElseZero(lanes_inside(j, begin, end), terms[k]);
      }
      hn::StoreU(terms[k], d, z + j);
      lanes[(v + k) % kLaneVecs] = hn::Add(lanes[(v + k) % kLaneVecs], terms[k]);
    }
  }
  sums.add(lanes);
}

Softmax softmax_terms(float* z, std::int64_t begin, std::int64_t end, std::int64_t padded_end) {
  const Floats d;
  const std::int64_t first_panel = begin / kPanel * kPanel;
  const std::int64_t last_panel = (end - 1) / kPanel * kPanel;
  std::fill(z, z + first_panel, 0.0F);
  std::fill(z + last_panel + kPanel, z + padded_end, 0.0F);

  const V lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  const auto load_inside = [&](std::int64_t j) HWY_ATTR {
    return hn::IfThenElse(lanes_inside(j, begin, end), hn::LoadU(d, z + j), lowest);
  };
  std::int64_t j = begin / kLanes * kLanes;
  V m[4] = {load_inside(j), lowest, lowest, lowest};
  j += kLanes;
  for (; j + 4 * kLanes <= end; j += 4 * kLanes) {
    HWY_UNROLL(4)
    for (int k = 0; k < 4; ++k) m[k] = hn::Max(m[k], hn::LoadU(d, z + j + k * kLanes));
  }
  for (; j < end; j += kLanes) m[0] = hn::Max(m[0], load_inside(j));
  V top = hn::Max(hn::Max(m[0], m[1]), hn::Max(m[2], m[3]));
  top = hn::MaxOfLanes(d, top);

  double lane_sums[kVirtualLanes] = {};
  LaneSums sums(lane_sums);
  for (std::int64_t p = first_panel; p <= last_panel; p += kPanel) {
    if (p >= begin && p + kPanel <= end) {
      exp_panel<true>(z + p, top, 0, kPanel, sums);
    } else {
      exp_panel<false>(z + p, top, begin - p, end - p, sums);
    }
  }
  // The maximum's own term is 1. A NaN, and infinity minus infinity, end up in the sum, whatever
  // Max made of them.
  sums.store(lane_sums);
  const double sum = tree_sum(lane_sums);
  const bool valid = sum >= 1 && std::isfinite(sum);
  return {valid ? hn::GetLane(top) : std::numeric_limits<float>::quiet_NaN(), sum};
}

void masked_sums(const float* const* terms, std::int64_t rows, const float* mask,
                 std::int64_t padded_end, double* sums) {
  constexpr std::int64_t kChunk = 2048;  // its part of the mask (8 KiB) stays in L1
  constexpr int kTogether = 16;
  const Floats d;
  for (std::int64_t first = 0; first < rows; first += kTogether) {
    const int count = static_cast<int>(std::min<std::int64_t>(kTogether, rows - first));
    double lane_sums[kTogether][kVirtualLanes] = {};
    for (std::int64_t begin = 0; begin < padded_end; begin += kChunk) {
      const std::int64_t end = std::min(begin + kChunk, padded_end);
      for (int r = 0; r < count; ++r) {
        const float* const row = terms[first + r];
        LaneSums sum(lane_sums[r]);
        for (std::int64_t p = begin; p < end; p += kPanel) {
          V lanes[kLaneVecs];
          HWY_UNROLL(8)
          for (int k = 0; k < kLaneVecs; ++k) lanes[k] = hn::Zero(d);
          HWY_UNROLL(4)
          for (int j = 0; j < kPanel; j += kVirtualLanes) {
            HWY_UNROLL(8)
            for (int k = 0; k < kLaneVecs; ++k) {
              const std::int64_t at = p + j + k * kLanes;
              lanes[k] = hn::MulAdd(hn::LoadU(d, row + at), hn::LoadU(d, mask + at), lanes[k]);
            }
          }
          sum.add(lanes);
        }
        sum.store(lane_sums[r]);
      }
    }
    for (int r = 0; r < count; ++r) sums[first + r] = tree_sum(lane_sums[r]);
  }
}

// Adds `rows` rows to the sums of keys [j, j + kSumVecs * kDoubleLanes), which stay in registers.
constexpr int kSumVecs = 8;
HWY_INLINE void add_rows(const float* const* terms, const double* inverse, std::int64_t rows,
                         std::int64_t j, const float* mask, double* sums) {
  const HalfFloats dh;
  const Doubles dd;
  VD sum[kSumVecs];
  HWY_UNROLL(8)
  for (int k = 0; k < kSumVecs; ++k) sum[k] = hn::LoadU(dd, sums + j + k * kDoubleLanes);
  for (std::int64_t r = 0; r < rows; ++r) {
    const VD factor = hn::Set(dd, inverse[r]);
    const float* const from = terms[r] + j;
    HWY_UNROLL(8)
    for (int k = 0; k < kSumVecs; ++k) {
      const VD term = hn::PromoteTo(dd, hn::LoadU(dh, from + k * kDoubleLanes));
      sum[k] = hn::MulAdd(term, factor, sum[k]);
    }
  }
  HWY_UNROLL(8)
  for (int k = 0; k < kSumVecs; ++k) {
    const std::int64_t at = j + k * kDoubleLanes;
    const VD keep = hn::PromoteTo(dd, hn::LoadU(dh, mask + at));
    const VD before = hn::LoadU(dd, sums + at);
    hn::StoreU(hn::IfThenElse(hn::Ne(keep, hn::Zero(dd)), sum[k], before), dd, sums + at);
  }
}

void add_columns(const float* const* terms, const double* inverse, std::int64_t rows,
                 const float* mask, std::int64_t padded_end, double* sums) {
  constexpr std::int64_t kChunk = 1024;   // its sums (8 KiB) stay in L1 while rows stream by
  constexpr std::int64_t kTogether = 16;  // not more streams than the prefetchers follow
  for (std::int64_t begin = 0; begin < padded_end; begin += kChunk) {
    const std::int64_t end = std::min(begin + kChunk, padded_end);
    for (std::int64_t r = 0; r < rows; r += kTogether) {
      const std::int64_t count = std::min(kTogether, rows - r);
      for (std::int64_t j = begin; j < end; j += kSumVecs * kDoubleLanes) {
        add_rows(terms + r, inverse + r, count, j, mask, sums);
      }
    }
  }
}

const char* name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace kvspan::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvspan::kernels {

HWY_EXPORT(name);
HWY_EXPORT(pack_keys);
HWY_EXPORT(logits);
HWY_EXPORT(softmax_terms);
HWY_EXPORT(masked_sums);
HWY_EXPORT(add_columns);

std::string target_name() { return HWY_DYNAMIC_DISPATCH(name)(); }

void pack_keys(const float* keys, std::int64_t tokens, std::int64_t stride, int dim,
               float* panels) {
  HWY_DYNAMIC_DISPATCH(pack_keys)(keys, tokens, stride, dim, panels);
}

void logits(const float* const* q, std::int64_t rows, int dim, const float* panels,
            std::int64_t panel_begin, std::int64_t panel_end, float scale, float softcap,
            float* const* out) {
  HWY_DYNAMIC_DISPATCH(logits)
  (q, rows, dim, panels, panel_begin, panel_end, scale, softcap, out);
}

Softmax softmax_terms(float* z, std::int64_t begin, std::int64_t end, std::int64_t padded_end) {
  return HWY_DYNAMIC_DISPATCH(softmax_terms)(z, begin, end, padded_end);
}

double masked_sum(const float* terms, const float* mask, std::int64_t padded_end) {
  double sum = 0;
  HWY_DYNAMIC_DISPATCH(masked_sums)(&terms, 1, mask, padded_end, &sum);
  return sum;
}

void masked_sums(const float* const* terms, std::int64_t rows, const float* mask,
                 std::int64_t padded_end, double* sums) {
  HWY_DYNAMIC_DISPATCH(masked_sums)(terms, rows, mask, padded_end, sums);
}

void add_columns(const float* const* terms, const double* inverse, std::int64_t rows,
                 const float* mask, std::int64_t padded_end, double* sums) {
  HWY_DYNAMIC_DISPATCH(add_columns)(terms, inverse, rows, mask, padded_end, sums);
}

}  // namespace kvspan::kernels
#endif  // HWY_ONCE
