// SPDX-License-Identifier: Apache-2.0
// The kernels that read vectors as they lie in the trace: weighted sums of values, dot products,
// terms of keys that are held altered.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "sim/attention/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sim/attention/vector_kernels.cpp"
// clang-format off
#include "sim/attention/dispatch_targets.h"  // before Highway
#include <hwy/foreach_target.h>  // before highway.h
#include "sim/attention/kernels_inl.h"
#include <hwy/contrib/math/math-inl.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace kvspan::kernels::HWY_NAMESPACE {

constexpr int kValueVecs = 2;
constexpr int kValueColumns = kValueVecs * kLanes;
constexpr int kWideVecs = 8;  // of one row, whose sums leave registers free

// Adds `count` entries to columns [first_column, first_column + columns) of kRows rows of `out`.
//   from    the columns of entries[0], then of every next one if kPacked, or of entries[c] at
//           from + entries[c] * stride
template <int kRows, int kBlockVecs, bool kPacked>
HWY_NOINLINE void value_block(const float* const* terms, const std::int32_t* entries,
                              std::int64_t count, const float* from, std::int64_t stride,
                              double* const* out, int first_column, int columns) {
  constexpr std::ptrdiff_t kAhead = 8;  // entries that are fetched before they are needed
  const Floats d;
  V acc[kRows][kBlockVecs];
  const float* row[kRows];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    row[r] = terms[r];
    HWY_UNROLL(8)
    for (int k = 0; k < kBlockVecs; ++k) acc[r][k] = hn::Zero(d);
  }
  for (std::ptrdiff_t c = 0; c < count; ++c) {
    const std::ptrdiff_t entry = entries[c];
    const float* const at = kPacked ? from + c * kBlockVecs * kLanes : from + entry * stride;
    if constexpr (!kPacked) {
      const float* const ahead = from + entries[std::min(c + kAhead, count - 1)] * stride;
      HWY_UNROLL(8)
      for (int k = 0; k < kBlockVecs * kLanes; k += 16) __builtin_prefetch(ahead + k);
    }
    V v[kBlockVecs];
    HWY_UNROLL(8)
    for (int k = 0; k < kBlockVecs; ++k) v[k] = hn::LoadU(d, at + k * kLanes);
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const V s = hn::Set(d, row[r][entry]);
      HWY_UNROLL(8)
      for (int k = 0; k < kBlockVecs; ++k) acc[r][k] = hn::MulAdd(s, v[k], acc[r][k]);
    }
  }
  alignas(64) float sums[kRows][kBlockVecs * kLanes];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int k = 0; k < kBlockVecs; ++k) hn::Store(acc[r][k], d, sums[r] + k * kLanes);
  }
  for (int r = 0; r < kRows; ++r) {
    double* const to = out[r] + first_column;
    int i = 0;
    for (; i + kDoubleLanes <= columns; i += kDoubleLanes) {
      const VD sum = hn::PromoteTo(Doubles(), hn::Load(HalfFloats(), sums[r] + i));
      hn::StoreU(hn::Add(hn::LoadU(Doubles(), to + i), sum), Doubles(), to + i);
    }
    for (; i < columns; ++i) to[i] += static_cast<double>(sums[r][i]);
  }
}

// Values are gathered into L1 once for all rows, kValueColumns columns at a time.
void value_columns(const float* const* terms, std::int64_t rows, const std::int32_t* entries,
                   std::int64_t count, const float* values, std::int64_t stride, int column,
                   int columns, double* const* out) {
  alignas(64) float packed[kValueChunk * kValueColumns];
  for (std::int64_t c = 0; c < count; ++c) {
    const float* const from = values + entries[c] * stride + column;
    float* const to = packed + c * kValueColumns;
    if (columns == kValueColumns) {
      HWY_UNROLL(8)
      for (int k = 0; k < kValueColumns; k += kLanes) {
        hn::Store(hn::LoadU(Floats(), from + k), Floats(), to + k);
      }
    } else {
      std::fill(std::copy(from, from + columns, to), to + kValueColumns, 0.0F);
    }
  }
  for_row_blocks(rows, [&]<int n>(std::int64_t r, Rows<n>) HWY_ATTR {
    value_block<n, kValueVecs, true>(terms + r, entries, count, packed, 0, out + r, column,
                                     columns);
  });
}

void weighted_values(const float* const* terms, std::int64_t rows, const std::int32_t* entries,
                     std::int64_t count, const float* values, std::int64_t stride, int dim,
                     double* const* out) {
  constexpr int kWideColumns = kWideVecs * kLanes;
  if (rows == 0) return;
  for (std::int64_t r = 0; r < rows; ++r) std::fill(out[r], out[r] + dim, 0.0);
  for (std::int64_t begin = 0; begin < count; begin += kValueChunk) {
    const std::int64_t size = std::min(kValueChunk, count - begin);
    int column = 0;
    // Few rows do not pay for the gathering.
    for (; rows == 1 && column + kWideColumns <= dim; column += kWideColumns) {
      value_block<1, kWideVecs, false>(terms, entries + begin, size, values + column, stride, out,
                                       column, kWideColumns);
    }
    constexpr int kFewColumns = kVecs * kLanes;
    for (; rows <= kMaxRows && column + kFewColumns <= dim; column += kFewColumns) {
      for_row_blocks(rows, [&]<int n>(std::int64_t r, Rows<n>) HWY_ATTR {
        value_block<n, kVecs, false>(terms + r, entries + begin, size, values + column, stride,
                                     out + r, column, kFewColumns);
      });
    }
    for (; column < dim; column += kValueColumns) {
      value_columns(terms, rows, entries + begin, size, values, stride, column,
                    std::min(kValueColumns, dim - column), out);
    }
  }
}

// Every lane is a vector of its own, so that its sum runs in order; y null: x itself.
void dots(const float* x, std::int64_t count, std::int64_t stride, int dim, const double* y,
          double* out) {
  constexpr int kBlockVecs = 8;
  constexpr int kBlock = kBlockVecs * kDoubleLanes;
  const HalfFloats dh;
  const Doubles dd;
  std::vector<float> panel(static_cast<std::size_t>(kPanel) * static_cast<std::size_t>(dim));
  double sums[kPanel];
  for (std::int64_t first = 0; first < count; first += kPanel) {
    const std::int64_t vectors = std::min(kPanel, count - first);
    pack_keys(x + first * stride, vectors, stride, dim, panel.data());
    for (int begin = 0; begin < kPanel; begin += kBlock) {
      VD sum[kBlockVecs];
      HWY_UNROLL(8)
      for (int k = 0; k < kBlockVecs; ++k) sum[k] = hn::Zero(dd);
      for (std::ptrdiff_t i = 0; i < dim; ++i) {
        const float* const from = panel.data() + i * kPanel + begin;
        const VD factor = y == nullptr ? hn::Zero(dd) : hn::Set(dd, y[i]);
        HWY_UNROLL(8)
        for (int k = 0; k < kBlockVecs; ++k) {
          const VD v = hn::PromoteTo(dd, hn::LoadU(dh, from + k * kDoubleLanes));
          sum[k] = hn::MulAdd(v, y == nullptr ? v : factor, sum[k]);
        }
      }
      HWY_UNROLL(8)
      for (int k = 0; k < kBlockVecs; ++k) hn::StoreU(sum[k], dd, sums + begin + k * kDoubleLanes);
    }
    std::copy(sums, sums + vectors, out + first);
  }
}

// Chunks of kVirtualLanes entries are gathered; entry c belongs to lane c % kVirtualLanes of the
// sums.
HeldTerms held_terms(const std::int32_t* entries, std::int64_t count, const float* full,
                     double full_max, float* z) {
  const Floats d;
  const HalfFloats dh;
  const Doubles dd;
  float most = -std::numeric_limits<float>::infinity();
  for (std::int64_t c = 0; c < count; ++c) most = std::max(most, z[entries[c]]);
  double sums[kVirtualLanes] = {};
  double distances[kVirtualLanes] = {};
  double weights[kVirtualLanes] = {};
  alignas(64) float logit[kVirtualLanes];
  alignas(64) float term[kVirtualLanes];
  alignas(64) float exact[kVirtualLanes];
  const VD base = hn::Set(dd, full_max);
  for (std::int64_t begin = 0; begin < count; begin += kVirtualLanes) {
    const auto size = std::min<std::int64_t>(kVirtualLanes, count - begin);
    std::fill(exact, exact + kVirtualLanes, 0.0F);
    std::fill(logit, logit + kVirtualLanes, most);
    for (std::int64_t l = 0; l < size; ++l) {
      logit[l] = z[entries[begin + l]];
      exact[l] = full[entries[begin + l]];
    }
    V x[kLaneVecs];
    HWY_UNROLL(8)
    for (int k = 0; k < kLaneVecs; ++k)
      x[k] = hn::Sub(hn::Load(d, logit + k * kLanes), hn::Set(d, most));
    exp_nonpositive(x);
    HWY_UNROLL(8)
    for (int k = 0; k < kLaneVecs; ++k) hn::Store(x[k], d, term + k * kLanes);
    std::fill(term + size, term + kVirtualLanes, 0.0F);
    for (std::int64_t l = 0; l < size; ++l) z[entries[begin + l]] = term[l];
    HWY_UNROLL(8)
    for (int k = 0; k < kVirtualLanes; k += kDoubleLanes) {
      const VD weight = hn::PromoteTo(dd, hn::Load(dh, exact + k));
      const VD held = hn::PromoteTo(dd, hn::Load(dh, logit + k));
      const auto known = hn::Gt(weight, hn::Zero(dd));
      // A term of 0 says nothing of its logit, and weighs nothing.
      const VD was = hn::Add(base, hn::Log(dd, hn::IfThenElse(known, weight, hn::Set(dd, 1.0))));
      const VD distance = hn::Abs(hn::Sub(was, held));
      hn::StoreU(hn::Add(hn::LoadU(dd, sums + k), hn::PromoteTo(dd, hn::Load(dh, term + k))), dd,
                 sums + k);
      hn::StoreU(hn::MulAdd(weight, distance, hn::LoadU(dd, distances + k)), dd, distances + k);
      hn::StoreU(hn::Add(weight, hn::LoadU(dd, weights + k)), dd, weights + k);
    }
  }
  return {most, tree_sum(sums), tree_sum(distances), tree_sum(weights)};
}

}  // namespace kvspan::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvspan::kernels {

HWY_EXPORT(weighted_values);
HWY_EXPORT(dots);
HWY_EXPORT(held_terms);

void weighted_values(const float* const* terms, std::int64_t rows, const std::int32_t* entries,
                     std::int64_t count, const float* values, std::int64_t stride, int dim,
                     double* const* out) {
  HWY_DYNAMIC_DISPATCH(weighted_values)
  (terms, rows, entries, count, values, stride, dim, out);
}

void dots(const float* x, std::int64_t count, int dim, const double* y, double* out) {
  HWY_DYNAMIC_DISPATCH(dots)(x, count, dim, dim, y, out);
}

void squared_norms(const float* x, std::int64_t count, std::int64_t stride, int dim, double* out) {
  HWY_DYNAMIC_DISPATCH(dots)(x, count, stride, dim, nullptr, out);
}

HeldTerms held_terms(const std::int32_t* entries, std::int64_t count, const float* full,
                     double full_max, float* z) {
  return HWY_DYNAMIC_DISPATCH(held_terms)(entries, count, full, full_max, z);
}

}  // namespace kvspan::kernels
#endif  // HWY_ONCE
