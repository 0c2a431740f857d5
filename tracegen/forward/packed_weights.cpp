// SPDX-License-Identifier: Apache-2.0
// A panel holds, for every 32 columns (a block of each output):
//
//   scale   64 floats, one an output          low   64 floats, of Q4_1
//   numbers of column 0, 1, ... 31:           Q8_0: 64 signed bytes
//                                             Q4: 32 bytes, output o in the low half of byte o,
//                                                 output o + 32 in the high half
//
// so that a vector of outputs is widened in a few instructions, without a shuffle. Products and
// sums are those of model/dequantise.cpp, and not fused.
#include "tracegen/forward/packed_weights.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>

#include "sim/attention/kernels.h"
#include "sim/base/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tracegen/forward/packed_weights.cpp"
// clang-format off
#include "sim/attention/dispatch_targets.h"  // before Highway
#include <hwy/foreach_target.h>  // before highway.h
#include <hwy/highway.h>
// clang-format on

#ifndef KVSPAN_PACKED_WEIGHTS_FORM
#define KVSPAN_PACKED_WEIGHTS_FORM
namespace kvspan::tracegen {
namespace packed {

constexpr std::int64_t kBlock = 32;  // columns
constexpr std::int64_t kOutputs = kvspan::kernels::kPanel;
constexpr std::int64_t kFloats = kOutputs * static_cast<std::int64_t>(sizeof(float));

// Of kBlock columns of a panel.
struct Form {
  bool low = false;               // there are minima
  std::int64_t column_bytes = 0;  // numbers of one column
  std::int64_t block_bytes = 0;
};
inline Form form_of(WeightType type) {
  Form form;
  form.low = type == WeightType::q4_1;
  form.column_bytes = type == WeightType::q8_0 ? kOutputs : kOutputs / 2;
  form.block_bytes = (form.low ? 2 : 1) * kFloats + kBlock * form.column_bytes;
  return form;
}

}  // namespace packed
}  // namespace kvspan::tracegen
#endif

HWY_BEFORE_NAMESPACE();
namespace kvspan::tracegen::packed::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;
using Numbers = hn::RebindToSigned<Floats>;

// Numbers of the outputs [output, output + lanes) of a column.
template <WeightType kType>
HWY_INLINE hn::Vec<Numbers> numbers_at(const std::byte* column, std::int64_t output) {
  const Numbers d;
  if constexpr (kType == WeightType::q8_0) {
    const hn::Rebind<std::int8_t, Numbers> bytes;
    return hn::PromoteTo(d,
                         hn::LoadU(bytes, reinterpret_cast<const std::int8_t*>(column) + output));
  } else {
    constexpr std::int64_t kHalf = kOutputs / 2;
    const hn::Rebind<std::uint8_t, Numbers> bytes;
    const auto both = hn::PromoteTo(
        d, hn::LoadU(bytes, reinterpret_cast<const std::uint8_t*>(column) + output % kHalf));
    const auto four = output < kHalf ? hn::And(both, hn::Set(d, 15)) : hn::ShiftRight<4>(both);
    return kType == WeightType::q4_0 ? hn::Sub(four, hn::Set(d, 8)) : four;
  }
}

template <WeightType kType>
void widen_blocks(const std::byte* panel, std::int64_t columns, float* out) {
  const Floats d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const Form form = form_of(kType);
  for (std::int64_t first = 0; first < columns; first += kBlock, panel += form.block_bytes) {
    const auto* scale = reinterpret_cast<const float*>(panel);
    const float* low = scale + kOutputs;
    const std::byte* numbers = panel + (form.low ? 2 : 1) * kFloats;
    for (std::int64_t output = 0; output < kOutputs; output += lanes) {
      const auto factor = hn::LoadU(d, scale + output);
      for (std::int64_t i = 0; i < kBlock; ++i) {
        auto value = hn::Mul(
            hn::ConvertTo(d, numbers_at<kType>(numbers + i * form.column_bytes, output)), factor);
        if constexpr (kType == WeightType::q4_1) value = hn::Add(value, hn::LoadU(d, low + output));
        hn::StoreU(value, d, out + (first + i) * kOutputs + output);
      }
    }
  }
}

void widen(WeightType type, const std::byte* panel, std::int64_t columns, float* out) {
  switch (type) {
    case WeightType::q4_0:
      return widen_blocks<WeightType::q4_0>(panel, columns, out);
    case WeightType::q4_1:
      return widen_blocks<WeightType::q4_1>(panel, columns, out);
    default:
      return widen_blocks<WeightType::q8_0>(panel, columns, out);
  }
}

}  // namespace kvspan::tracegen::packed::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvspan::tracegen {
namespace packed {

HWY_EXPORT(widen);

}  // namespace packed

namespace {

using packed::kBlock;
using packed::kOutputs;

float half_at(const std::byte* bytes) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, bytes, sizeof(bits));
  return half_to_float(bits);
}

}  // namespace

bool stays_packed(WeightType type) {
  return type == WeightType::q4_0 || type == WeightType::q4_1 || type == WeightType::q8_0;
}

std::int64_t packed_panel_bytes(const WeightMatrix& w) {
  return w.columns / kBlock * packed::form_of(w.type).block_bytes;
}

void pack_panel(const WeightMatrix& w, std::int64_t first, std::byte* out) {
  assert(stays_packed(w.type));
  const packed::Form form = packed::form_of(w.type);
  const std::int64_t stored = weight_block_bytes(w.type);
  const std::int64_t blocks = w.columns / kBlock;
  const std::int64_t count = std::min(kOutputs, w.rows - first);
  std::fill_n(out, packed_panel_bytes(w), std::byte{0});
  for (std::int64_t o = 0; o < count; ++o) {
    const std::byte* from = w.bytes.data() + w.stored_row(first + o) * blocks * stored;
    for (std::int64_t b = 0; b < blocks; ++b, from += stored) {
      std::byte* to = out + b * form.block_bytes;
      const float scale = half_at(from);
      std::memcpy(to + o * 4, &scale, 4);
      if (form.low) {
        const float low = half_at(from + 2);
        std::memcpy(to + packed::kFloats + o * 4, &low, 4);
      }
      std::byte* numbers = to + (form.low ? 2 : 1) * packed::kFloats;
      const std::byte* q = from + (form.low ? 4 : 2);
      for (std::int64_t i = 0; i < kBlock; ++i, numbers += form.column_bytes) {
        if (form.column_bytes == kOutputs) {
          numbers[o] = q[i];
          continue;
        }
        // Weight i lies in the low half of byte i, weight i + 16 in the high half.
        constexpr std::int64_t kHalf = kBlock / 2;
        const std::byte four = i < kHalf ? q[i] & std::byte{15} : q[i - kHalf] >> 4;
        numbers[o % (kOutputs / 2)] |= o < kOutputs / 2 ? four : four << 4;
      }
    }
  }
}

void widen_panel(const WeightMatrix& w, const std::byte* panel, float* out) {
  using namespace packed;
  HWY_DYNAMIC_DISPATCH(widen)(w.type, panel, w.columns, out);
}

}  // namespace kvspan::tracegen
#endif
