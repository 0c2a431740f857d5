// SPDX-License-Identifier: Apache-2.0
#include "sim/trace/tensor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/half.h"

namespace kvspan {

namespace {

struct DtypeInfo {
  Dtype dtype;
  std::string_view name;
  std::int64_t bytes;
};
constexpr std::array<DtypeInfo, 7> kDtypes{{{Dtype::f32, "F32", 4},
                                            {Dtype::f16, "F16", 2},
                                            {Dtype::bf16, "BF16", 2},
                                            {Dtype::i32, "I32", 4},
                                            {Dtype::i64, "I64", 8},
                                            {Dtype::u8, "U8", 1},
                                            {Dtype::u32, "U32", 4}}};

const DtypeInfo& info_of(Dtype dtype) { return kDtypes[static_cast<std::size_t>(dtype)]; }

// Most calls are for one vector of a head.
constexpr std::size_t kWidenBlock = 64;

// Converts one block and returns whether all of it is finite. The blocks are local arrays of fixed
// length and the bodies have no branch, so that compilers vectorise them at -O2 without being told
// about alignment or aliasing.
template <typename Storage>
using Convert = bool (*)(const std::array<Storage, kWidenBlock>&, std::array<float, kWidenBlock>*);

bool f16_block(const std::array<std::uint16_t, kWidenBlock>& in,
               std::array<float, kWidenBlock>* out) {
  std::uint32_t bad = 0;
  for (std::size_t i = 0; i < kWidenBlock; ++i) {
    const std::uint32_t half = in[i];
    (*out)[i] = half_to_float(half);
    bad |= (half & 0x7C00U) + 0x0400U;  // reaches bit 15 for infinity and NaN only
  }
  return (bad & 0x8000U) == 0;
}

#if defined(__x86_64__)
// The same numbers by the instruction that every processor with AVX2 has.
__attribute__((target("avx2,f16c"))) bool f16_block_avx2(
    const std::array<std::uint16_t, kWidenBlock>& in, std::array<float, kWidenBlock>* out) {
  const __m128i exponent = _mm_set1_epi16(0x7C00);
  __m128i bad = _mm_setzero_si128();
  for (std::size_t i = 0; i < kWidenBlock; i += 8) {
    const __m128i halves = _mm_load_si128(reinterpret_cast<const __m128i*>(in.data() + i));
    bad = _mm_or_si128(bad, _mm_cmpeq_epi16(_mm_and_si128(halves, exponent), exponent));
    _mm256_store_ps(out->data() + i, _mm256_cvtph_ps(halves));
  }
  return _mm_testz_si128(bad, bad) != 0;
}
#endif

Convert<std::uint16_t> choose_f16_block() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") != 0) return f16_block_avx2;
#endif
  return f16_block;
}

bool bf16_block(const std::array<std::uint16_t, kWidenBlock>& in,
                std::array<float, kWidenBlock>* out) {
  std::uint32_t bad = 0;
  for (std::size_t i = 0; i < kWidenBlock; ++i) {
    const std::uint32_t bits = in[i];
    (*out)[i] = std::bit_cast<float>(bits << 16U);
    bad |= (bits & 0x7F80U) == 0x7F80U ? 1U : 0U;
  }
  return bad == 0;
}

bool f32_block(const std::array<std::uint32_t, kWidenBlock>& in,
               std::array<float, kWidenBlock>* out) {
  std::uint32_t bad = 0;
  for (std::size_t i = 0; i < kWidenBlock; ++i) {
    (*out)[i] = std::bit_cast<float>(in[i]);
    bad |= (in[i] & 0x7F800000U) == 0x7F800000U ? 1U : 0U;
  }
  return bad == 0;
}

template <typename Storage>
void widen_with(Convert<Storage> convert, Storage exponent_mask, Storage mantissa_mask,
                const TensorView& tensor, std::int64_t first, std::span<float> out,
                const std::string& name) {
  alignas(64) std::array<Storage, kWidenBlock> in{};
  alignas(64) std::array<float, kWidenBlock> converted;
  const std::byte* source = tensor.bytes.data() + static_cast<std::size_t>(first) * sizeof(Storage);
  for (std::size_t done = 0; done < out.size(); done += kWidenBlock) {
    const std::size_t count = std::min(kWidenBlock, out.size() - done);
    std::memcpy(in.data(), source + done * sizeof(Storage), count * sizeof(Storage));
    if (count < kWidenBlock)
      std::fill(in.begin() + static_cast<std::ptrdiff_t>(count), in.end(), 0);
    if (!convert(in, &converted)) {
      for (std::size_t i = 0; i < count; ++i) {
        if ((in[i] & exponent_mask) != exponent_mask) continue;
        throw TraceError(fmt::format("{}: element {} is {}; expected finite values", name,
                                     first + static_cast<std::int64_t>(done + i),
                                     (in[i] & mantissa_mask) != 0 ? "NaN" : "infinite"));
      }
    }
    std::memcpy(out.data() + done, converted.data(), count * sizeof(float));
  }
}

}  // namespace

std::string_view dtype_name(Dtype dtype) { return info_of(dtype).name; }
std::int64_t dtype_bytes(Dtype dtype) { return info_of(dtype).bytes; }

std::optional<Dtype> dtype_of(std::string_view name) {
  const auto* info = std::find_if(kDtypes.begin(), kDtypes.end(),
                                  [&](const DtypeInfo& known) { return known.name == name; });
  if (info == kDtypes.end()) return std::nullopt;
  return info->dtype;
}

std::string dtype_names() {
  std::string text;
  for (const DtypeInfo& info : kDtypes) {
    if (!text.empty()) text += ", ";
    text += info.name;
  }
  return text;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) out += ", ";
    if (i == 8) {
      out += "...";
      break;
    }
    out += std::to_string(shape[i]);
  }
  return out + "]";
}

bool tensor_size(Dtype dtype, const std::vector<std::int64_t>& shape, std::int64_t* size_bytes) {
  std::int64_t size = dtype_bytes(dtype);
  for (const std::int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(size, extent, &size)) return false;
  }
  *size_bytes = size;
  return true;
}

std::int64_t TensorView::elements() const {
  return static_cast<std::int64_t>(bytes.size()) / dtype_bytes(dtype);
}

std::int64_t integer_at(const TensorView& tensor, std::int64_t index) {
  const auto read = [&](auto value) {
    const std::size_t offset = static_cast<std::size_t>(index) * sizeof(value);
    assert(offset + sizeof(value) <= tensor.bytes.size());
    std::memcpy(&value, tensor.bytes.data() + offset, sizeof(value));
    return static_cast<std::int64_t>(value);
  };
  assert(tensor.dtype == Dtype::i32 || tensor.dtype == Dtype::i64);
  return tensor.dtype == Dtype::i64 ? read(std::int64_t{}) : read(std::int32_t{});
}

void widen(const TensorView& tensor, std::int64_t first, std::span<float> out,
           const std::string& name) {
  assert(first >= 0 && first + static_cast<std::int64_t>(out.size()) <= tensor.elements());
  using U16 = std::uint16_t;
  static const Convert<U16> f16 = choose_f16_block();
  switch (tensor.dtype) {
    case Dtype::f32:
      widen_with<std::uint32_t>(f32_block, 0x7F800000U, 0x007FFFFFU, tensor, first, out, name);
      return;
    case Dtype::f16:
      widen_with<U16>(f16, U16{0x7C00}, U16{0x03FF}, tensor, first, out, name);
      return;
    case Dtype::bf16:
      widen_with<U16>(bf16_block, U16{0x7F80}, U16{0x007F}, tensor, first, out, name);
      return;
    case Dtype::i32:
    case Dtype::i64:
    case Dtype::u8:
    case Dtype::u32:
      break;
  }
  throw TraceError(fmt::format("{}: {}; expected a floating type", name, dtype_name(tensor.dtype)));
}

}  // namespace kvspan
