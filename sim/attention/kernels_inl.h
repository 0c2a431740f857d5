// SPDX-License-Identifier: Apache-2.0
// What every file with kernels shares, compiled for each target: vectors and their lanes, blocks of
// rows, exp.
#if defined(KVSPAN_KERNELS_INL_H) == defined(HWY_TARGET_TOGGLE)  // once for each target
#ifdef KVSPAN_KERNELS_INL_H
#undef KVSPAN_KERNELS_INL_H
#else
#define KVSPAN_KERNELS_INL_H
#endif

#include <cstdint>

#include <hwy/highway.h>

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

// Calls f(first row, Rows<n>) for blocks of at most kMaxRows rows, as equal as possible: blocks of
// one or two rows have too few independent sums to fill the FMA pipes.
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

// exp(x) for x <= 0, within 0.9 ulp with FMA and 1.2 without: x = n ln 2 + r, a polynomial of
// degree 6 in r (minimax, constant and linear term 1), times 2^n. Below kExpFlush the result is 0
// rather than a subnormal number, which would cost some 150 cycles per vector here and in masked
// sums; such a term is 1e-38 of the largest. n vectors go in step, to hide the latency of the FMAs.
constexpr float kExpFlush = -87.3365F;  // exp(kExpFlush) is just above the smallest normal number
template <int n>
HWY_INLINE void exp_nonpositive(V (&x)[n]) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  // Adding 1.5 * 2^23 rounds to an integer; adding the bias too leaves n + 127 in the low bits.
  const V magic = hn::Set(d, 12582912.0F + 127.0F);
  V shifted[n], r[n], p[n];
#define KVSPAN_EACH HWY_UNROLL(8) for (int k = 0; k < n; ++k)
  KVSPAN_EACH shifted[k] = hn::MulAdd(x[k], hn::Set(d, 1.44269504F), magic);
  KVSPAN_EACH p[k] = hn::Sub(shifted[k], magic);
  KVSPAN_EACH r[k] = hn::NegMulAdd(p[k], hn::Set(d, 0.693145752F), x[k]);
  KVSPAN_EACH r[k] = hn::NegMulAdd(p[k], hn::Set(d, 1.42860677e-6F), r[k]);
  KVSPAN_EACH p[k] = hn::MulAdd(hn::Set(d, 0.00138145406F), r[k], hn::Set(d, 0.00836874545F));
  KVSPAN_EACH p[k] = hn::MulAdd(p[k], r[k], hn::Set(d, 0.041668389F));
  KVSPAN_EACH p[k] = hn::MulAdd(p[k], r[k], hn::Set(d, 0.166665211F));
  KVSPAN_EACH p[k] = hn::MulAdd(p[k], r[k], hn::Set(d, 0.49999994F));
  KVSPAN_EACH p[k] = hn::MulAdd(p[k], r[k], hn::Set(d, 1.0F));
  KVSPAN_EACH p[k] = hn::MulAdd(p[k], r[k], hn::Set(d, 1.0F));
  KVSPAN_EACH p[k] = hn::Mul(p[k], hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted[k]))));
  // NaN is not below kExpFlush: it passes through.
  KVSPAN_EACH x[k] = hn::IfThenZeroElse(hn::Lt(x[k], hn::Set(d, kExpFlush)), p[k]);
#undef KVSPAN_EACH
}

HWY_INLINE double tree_sum(double (&lanes)[kVirtualLanes]) {
  for (int half = kVirtualLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

}  // namespace kvspan::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
