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
// Sums over keys run in 16 virtual lanes on every target: lane l takes keys l, l+16, l+32, l+48 of a
// panel in fp32, adds that to its own fp64 sum, and a fixed tree adds the lanes at the end. So
// targets with FMA (AVX2, AVX-512, NEON) agree bit for bit.
#include "sim/kernels/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

// On x86-64 four targets: AVX3, AVX2, SSE4 and the SSE2 baseline, which Highway emulates (EMU128; it
// avoids that before GCC 12.3 because of a wrong 16-bit multiply, which we do not use). SVE vectors
// cannot be array elements; such machines run NEON.
#define HWY_BROKEN_EMU128 0
#if defined(__x86_64__) || defined(_M_X64)
#define HWY_DISABLED_TARGETS HWY_SSSE3
#elif defined(__aarch64__)
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sim/kernels/kernels.cpp"
// clang-format off
#include <hwy/foreach_target.h>  // before highway.h
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace kvspan::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;
using Doubles = hn::Repartition<double, Floats>;
using HalfFloats = hn::Rebind<float, Doubles>;  // as many floats as fit a Doubles when widened
using V = hn::Vec<Floats>;
using VD = hn::Vec<Doubles>;

constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));
constexpr int kDoubleLanes = static_cast<int>(hn::MaxLanes(Doubles()));
constexpr int kVirtualLanes = 16;
constexpr int kLaneVecs = kVirtualLanes / kLanes;
constexpr int kLaneDoubles = kVirtualLanes / kDoubleLanes;

// Register block: 24 accumulators of 32 registers, or 12 of 16.
constexpr bool kManyRegisters = HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_NEON;
constexpr int kMaxRows = 6;
constexpr int kVecs = kManyRegisters ? 4 : 2;

// Calls f(first row, Rows<n>) for blocks of at most kMaxRows rows, as equal as possible: blocks of one
// or two rows have too few independent sums to fill the FMA pipes.
template <int n>
struct Rows {};
template <class F>
HWY_INLINE void for_row_blocks(std::int64_t rows, F f) {
  const std::int64_t blocks = (rows + kMaxRows - 1) / kMaxRows;
  std::int64_t r = 0;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t size = (rows - r) / (blocks - b);
    switch (size) {
      case 1:
        f(r, Rows<1>());
        break;
      case 2:
        f(r, Rows<2>());
        break;
      case 3:
        f(r, Rows<3>());
        break;
      case 4:
        f(r, Rows<4>());
        break;
      case 5:
        f(r, Rows<5>());
        break;
      default:
        f(r, Rows<6>());
    }
    r += size;
  }
}

// `keys` points to the block's first key in the panel, `key` is its number.
template <int kRows, int kBlockVecs>
HWY_NOINLINE void dot_block(const float* const* q, int dim, const float* keys, float scale,
                            float* const* out, std::int64_t key) {
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

template <int kBlockVecs>
HWY_INLINE void logits_panel(const float* const* q, std::int64_t rows, int dim, const float* panel,
                             float scale, float* const* out, std::int64_t first_key) {
  for (int sub = 0; sub < kPanel; sub += kBlockVecs * kLanes) {
    for_row_blocks(rows, [&]<int n>(std::int64_t r, Rows<n>) HWY_ATTR {
      dot_block<n, kBlockVecs>(q + r, dim, panel + sub, scale, out + r, first_key + sub);
    });
  }
}

void logits(const float* const* q, std::int64_t rows, int dim, const float* panels,
            std::int64_t panel_begin, std::int64_t panel_end, float scale, float softcap,
            float* const* out) {
  for (std::int64_t p = panel_begin; p < panel_end; ++p) {
    const float* const panel = panels + p * kPanel * dim;
    logits_panel<kVecs>(q, rows, dim, panel, scale, out, p * kPanel);
    if (softcap > 0) {
      for (std::int64_t r = 0; r < rows; ++r) cap_row(out[r] + p * kPanel, kPanel, softcap);
    }
  }
}

void pack_keys(const float* keys, std::int64_t tokens, std::int64_t stride, int dim,
               float* panels) {
  constexpr int kStep = 16;  // a tile of 64 x 16 stays in L1 while its cache lines fill up
  for (std::int64_t first = 0; first < tokens; first += kPanel, panels += kPanel * dim) {
    const int count = static_cast<int>(std::min(kPanel, tokens - first));
    for (std::ptrdiff_t i0 = 0; i0 < dim; i0 += kStep) {
      const std::ptrdiff_t i1 = std::min<std::ptrdiff_t>(i0 + kStep, dim);
      for (std::ptrdiff_t j = 0; j < count; ++j) {
        const float* const key = keys + (first + j) * stride;
        for (std::ptrdiff_t i = i0; i < i1; ++i) panels[i * kPanel + j] = key[i];
      }
      for (std::ptrdiff_t i = i0; i < i1; ++i) {
        std::fill(panels + i * kPanel + count, panels + (i + 1) * kPanel, 0.0F);
      }
    }
  }
}

// exp(x) for x <= 0: x = n ln 2 + r, a polynomial of degree 6 in r (minimax, constant and linear term
// fixed at 1), times 2^n. Below kExpFlush the result is 0, not a subnormal number.
constexpr float kExpFlush = -87.3365F;  // exp(kExpFlush) is just above the smallest normal float
HWY_INLINE V exp_nonpositive(V x) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  // Adding 1.5 * 2^23 rounds to an integer, adding the exponent bias leaves n + 127 in the low bits.
  const V magic = hn::Set(d, 12582912.0F + 127.0F);
  const V shifted = hn::MulAdd(x, hn::Set(d, 1.44269504F), magic);
  const V n = hn::Sub(shifted, magic);
  V r = hn::NegMulAdd(n, hn::Set(d, 0.693145752F), x);  // high part of ln 2: n times it is exact
  r = hn::NegMulAdd(n, hn::Set(d, 1.42860677e-6F), r);
  V p = hn::Set(d, 0.00138145406F);
  p = hn::MulAdd(p, r, hn::Set(d, 0.00836874545F));
  p = hn::MulAdd(p, r, hn::Set(d, 0.041668389F));
  p = hn::MulAdd(p, r, hn::Set(d, 0.166665211F));
  p = hn::MulAdd(p, r, hn::Set(d, 0.49999994F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F));
  const V power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  // NaN is not below kExpFlush: it passes through.
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, kExpFlush)), hn::Mul(p, power));
}

// The 16 lanes of a sum over keys.
class LaneSums {
 public:
  LaneSums() {
    for (VD& sum : sums_) sum = hn::Zero(Doubles());
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

  double total() const {
    double lanes[kVirtualLanes];
    for (int k = 0; k < kLaneDoubles; ++k) {
      hn::StoreU(sums_[k], Doubles(), lanes + k * kDoubleLanes);
    }
    for (int half = kVirtualLanes / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    return lanes[0];
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
  const Floats d;
  V lanes[kLaneVecs];
  HWY_UNROLL(8)
  for (int k = 0; k < kLaneVecs; ++k) lanes[k] = hn::Zero(d);
  HWY_UNROLL(4)
  for (int j = 0; j < kPanel; j += kVirtualLanes) {
    HWY_UNROLL(8)
    for (int k = 0; k < kLaneVecs; ++k) {
      float* const at = z + j + k * kLanes;
      V term = exp_nonpositive(hn::Sub(hn::LoadU(d, at), max));
      if constexpr (!kWhole) {
        term = hn::IfThenElseZero(lanes_inside(j + k * kLanes, begin, end), term);
      }
      hn::StoreU(term, d, at);
      lanes[k] = hn::Add(lanes[k], term);
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
  V m[4] = {lowest, lowest, lowest, lowest};
  std::int64_t j = begin;
  for (; j + 4 * kLanes <= end; j += 4 * kLanes) {
    HWY_UNROLL(4)
    for (int k = 0; k < 4; ++k) m[k] = hn::Max(m[k], hn::LoadU(d, z + j + k * kLanes));
  }
  float lanes[kLanes];
  hn::StoreU(hn::Max(hn::Max(m[0], m[1]), hn::Max(m[2], m[3])), d, lanes);
  float max = *std::max_element(lanes, lanes + kLanes);
  for (; j < end; ++j) max = std::max(max, z[j]);
  const V top = hn::Set(d, max);

  LaneSums sums;
  for (std::int64_t p = first_panel; p <= last_panel; p += kPanel) {
    if (p >= begin && p + kPanel <= end) {
      exp_panel<true>(z + p, top, 0, kPanel, sums);
    } else {
      exp_panel<false>(z + p, top, begin - p, end - p, sums);
    }
  }
  // A NaN, and infinity minus infinity, end up in the sum, whatever Max made of them.
  const double sum = sums.total();
  return {std::isfinite(sum) ? max : std::numeric_limits<float>::quiet_NaN(), sum};
}

double masked_sum(const float* terms, const float* mask, std::int64_t padded_end) {
  const Floats d;
  LaneSums sums;
  for (std::int64_t p = 0; p < padded_end; p += kPanel) {
    V lanes[kLaneVecs];
    HWY_UNROLL(8)
    for (int k = 0; k < kLaneVecs; ++k) lanes[k] = hn::Zero(d);
    HWY_UNROLL(4)
    for (int j = 0; j < kPanel; j += kVirtualLanes) {
      HWY_UNROLL(8)
      for (int k = 0; k < kLaneVecs; ++k) {
        const std::int64_t at = p + j + k * kLanes;
        lanes[k] = hn::MulAdd(hn::LoadU(d, terms + at), hn::LoadU(d, mask + at), lanes[k]);
      }
    }
    sums.add(lanes);
  }
  return sums.total();
}

// Adds kRows rows to the sums of keys [0, count).
template <int kRows>
HWY_NOINLINE void add_row_block(const float* const* terms, const double* inverse, std::int64_t begin,
                                std::int64_t end, const float* mask, double* sums) {
  const HalfFloats dh;
  const Doubles dd;
  const float* row[kRows];
  VD factor[kRows];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    row[r] = terms[r];
    factor[r] = hn::Set(dd, inverse[r]);
  }
  for (std::int64_t j = begin; j < end; j += kDoubleLanes) {
    const VD before = hn::LoadU(dd, sums + j);
    VD sum = before;
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      sum = hn::MulAdd(hn::PromoteTo(dd, hn::LoadU(dh, row[r] + j)), factor[r], sum);
    }
    const VD keep = hn::PromoteTo(dd, hn::LoadU(dh, mask + j));
    hn::StoreU(hn::IfThenElse(hn::Ne(keep, hn::Zero(dd)), sum, before), dd, sums + j);
  }
}

void add_columns(const float* const* terms, const double* inverse, std::int64_t rows,
                 const float* mask, std::int64_t padded_end, double* sums) {
  constexpr std::int64_t kChunk = 1024;  // its sums (8 KiB) stay in L1 while rows stream by
  constexpr int kBlock = 8;
  for (std::int64_t begin = 0; begin < padded_end; begin += kChunk) {
    const std::int64_t end = std::min(begin + kChunk, padded_end);
    std::int64_t r = 0;
    for (; r + kBlock <= rows; r += kBlock) {
      add_row_block<kBlock>(terms + r, inverse + r, begin, end, mask, sums);
    }
    if (r + 4 <= rows) {
      add_row_block<4>(terms + r, inverse + r, begin, end, mask, sums);
      r += 4;
    }
    for (; r < rows; ++r) add_row_block<1>(terms + r, inverse + r, begin, end, mask, sums);
  }
}

// Adds `count` entries to columns [column, column + columns) of kRows rows; only a block of one vector
// may have fewer than kBlockVecs * kLanes columns.
template <int kRows, int kBlockVecs>
HWY_NOINLINE void value_block(const float* const* terms, const std::int32_t* entries,
                              std::int64_t count, const float* values, std::int64_t stride,
                              int column, int columns, double* const* out) {
  const Floats d;
  const auto load = [&](const float* from) HWY_ATTR {
    if constexpr (kBlockVecs == 1) {
      if (columns < kLanes) {
        float part[kLanes] = {};
        std::copy(from, from + columns, part);
        return hn::LoadU(d, part);
      }
    }
    return hn::LoadU(d, from);
  };
  V acc[kRows][kBlockVecs];
  const float* row[kRows];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    row[r] = terms[r];
    HWY_UNROLL(8)
    for (int k = 0; k < kBlockVecs; ++k) acc[r][k] = hn::Zero(d);
  }
  for (std::int64_t c = 0; c < count; ++c) {
    const std::ptrdiff_t entry = entries[c];
    const float* const value = values + entry * stride + column;
    V v[kBlockVecs];
    HWY_UNROLL(8)
    for (int k = 0; k < kBlockVecs; ++k) v[k] = load(value + k * kLanes);
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const V s = hn::Set(d, row[r][entry]);
      HWY_UNROLL(8)
      for (int k = 0; k < kBlockVecs; ++k) acc[r][k] = hn::MulAdd(s, v[k], acc[r][k]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float sums[kBlockVecs * kLanes];
    HWY_UNROLL(8)
    for (int k = 0; k < kBlockVecs; ++k) hn::StoreU(acc[r][k], d, sums + k * kLanes);
    for (int k = 0; k < columns; ++k) out[r][column + k] += static_cast<double>(sums[k]);
  }
}

void weighted_values(const float* const* terms, std::int64_t rows, const std::int32_t* entries,
                     std::int64_t count, const float* values, std::int64_t stride, int dim,
                     double* const* out) {
  constexpr std::int64_t kChunk = 256;
  constexpr int kWide = kVecs * kLanes;
  for (std::int64_t r = 0; r < rows; ++r) std::fill(out[r], out[r] + dim, 0.0);
  for (std::int64_t c = 0; c < count; c += kChunk) {
    const std::int64_t size = std::min(kChunk, count - c);
    int column = 0;
    for (; column + kWide <= dim; column += kWide) {
      for_row_blocks(rows, [&]<int n>(std::int64_t r, Rows<n>) HWY_ATTR {
        value_block<n, kVecs>(terms + r, entries + c, size, values, stride, column, kWide, out + r);
      });
    }
    for (; column < dim; column += kLanes) {
      const int columns = std::min(kLanes, dim - column);
      for_row_blocks(rows, [&]<int n>(std::int64_t r, Rows<n>) HWY_ATTR {
        value_block<n, 1>(terms + r, entries + c, size, values, stride, column, columns, out + r);
      });
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
HWY_EXPORT(masked_sum);
HWY_EXPORT(add_columns);
HWY_EXPORT(weighted_values);

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
  return HWY_DYNAMIC_DISPATCH(masked_sum)(terms, mask, padded_end);
}

void add_columns(const float* const* terms, const double* inverse, std::int64_t rows,
                 const float* mask, std::int64_t padded_end, double* sums) {
  HWY_DYNAMIC_DISPATCH(add_columns)(terms, inverse, rows, mask, padded_end, sums);
}

void weighted_values(const float* const* terms, std::int64_t rows, const std::int32_t* entries,
                     std::int64_t count, const float* values, std::int64_t stride, int dim,
                     double* const* out) {
  HWY_DYNAMIC_DISPATCH(weighted_values)
  (terms, rows, entries, count, values, stride, dim, out);
}

}  // namespace kvspan::kernels
#endif  // HWY_ONCE
