// SPDX-License-Identifier: Apache-2.0
// Weights as they are stored, and their values in fp32. Each block format is a packed struct of
// bytes and one decode(); sums and products are formed in the order of the gguf package, so that
// the values are the same bit for bit.
#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstring>

#include "sim/base/half.h"
#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

namespace {

static_assert(std::endian::native == std::endian::little, "checkpoints are mapped, not converted");

using Bytes2 = std::array<std::uint8_t, 2>;

inline float half_of(const Bytes2& bytes) {
  return half_to_float(static_cast<std::uint32_t>(bytes[0] | (bytes[1] << 8)));
}

// ---- 32 weights: scale d, and minimum m or an offset --------------------------------------------

struct Q8_0 {
  Bytes2 d;
  std::array<std::int8_t, 32> q;
  void decode(float* out) const {
    const float scale = half_of(d);
    for (std::size_t i = 0; i < 32; ++i) out[i] = static_cast<float>(q[i]) * scale;
  }
};

struct Q4_0 {
  Bytes2 d;
  std::array<std::uint8_t, 16> q;  // weight i in the low half of byte i, i + 16 in the high half
  void decode(float* out) const {
    const float scale = half_of(d);
    for (std::size_t i = 0; i < 16; ++i) out[i] = scale * static_cast<float>((q[i] & 15) - 8);
    for (std::size_t i = 0; i < 16; ++i) out[i + 16] = scale * static_cast<float>((q[i] >> 4) - 8);
  }
};

struct Q4_1 {
  Bytes2 d, m;
  std::array<std::uint8_t, 16> q;
  void decode(float* out) const {
    const float scale = half_of(d);
    const float low = half_of(m);
    for (std::size_t i = 0; i < 16; ++i) out[i] = scale * static_cast<float>(q[i] & 15) + low;
    for (std::size_t i = 0; i < 16; ++i) out[i + 16] = scale * static_cast<float>(q[i] >> 4) + low;
  }
};

// Fifth bits: weight i has bit i of `high`.
std::array<std::uint8_t, 32> five_bits(const std::array<std::uint8_t, 4>& high,
                                       const std::array<std::uint8_t, 16>& q) {
  std::array<std::uint8_t, 32> out;
  const auto bits = std::bit_cast<std::uint32_t>(high);
  for (std::uint32_t i = 0; i < 16; ++i) {
    out[i] = static_cast<std::uint8_t>((q[i] & 15U) | ((bits >> i << 4U) & 16U));
    out[i + 16] = static_cast<std::uint8_t>((q[i] >> 4U) | ((bits >> (i + 16) << 4U) & 16U));
  }
  return out;
}

struct Q5_0 {
  Bytes2 d;
  std::array<std::uint8_t, 4> high;
  std::array<std::uint8_t, 16> q;
  void decode(float* out) const {
    const float scale = half_of(d);
    const auto five = five_bits(high, q);
    for (std::size_t i = 0; i < 32; ++i) out[i] = scale * static_cast<float>(five[i] - 16);
  }
};

struct Q5_1 {
  Bytes2 d, m;
  std::array<std::uint8_t, 4> high;
  std::array<std::uint8_t, 16> q;
  void decode(float* out) const {
    const float scale = half_of(d);
    const float low = half_of(m);
    const auto five = five_bits(high, q);
    for (std::size_t i = 0; i < 32; ++i) out[i] = scale * static_cast<float>(five[i]) + low;
  }
};

// ---- 256 weights: groups with their own quantised scales ----------------------------------------

// Scale and minimum of 8 groups of 32 weights, 6 bits each in 12 bytes: the first four of each kind
// in the low bits of bytes 0 to 7, the others in the halves of bytes 8 to 11 with their upper two
// bits on top of bytes 0 to 7.
struct GroupScales {
  std::array<float, 8> scale, low;
  GroupScales(const Bytes2& d, const Bytes2& dmin, const std::array<std::uint8_t, 12>& packed) {
    const float of_scale = half_of(d);
    const float of_low = half_of(dmin);
    for (std::size_t i = 0; i < 4; ++i) {
      const std::uint32_t a = packed[i];
      const std::uint32_t b = packed[i + 4];
      const std::uint32_t c = packed[i + 8];
      scale[i] = of_scale * static_cast<float>(a & 63U);
      low[i] = of_low * static_cast<float>(b & 63U);
      scale[i + 4] = of_scale * static_cast<float>((c & 15U) | (a >> 2U & 48U));
      low[i + 4] = of_low * static_cast<float>((c >> 4U) | (b >> 2U & 48U));
    }
  }
};

struct Q4K {
  Bytes2 d, dmin;
  std::array<std::uint8_t, 12> scales;
  std::array<std::uint8_t, 128> q;  // groups 2g and 2g + 1 are the halves of bytes 32 g + i
  void decode(float* out) const {
    const GroupScales group(d, dmin, scales);
    for (std::size_t g = 0; g < 8; ++g) {
      const std::uint8_t* byte = q.data() + g / 2 * 32;
      const std::size_t shift = g % 2 * 4;
      const float scale = group.scale[g];
      const float low = group.low[g];
      for (std::size_t i = 0; i < 32; ++i)
        out[32 * g + i] = scale * static_cast<float>((byte[i] >> shift) & 15) - low;
    }
  }
};

struct Q5K {
  Bytes2 d, dmin;
  std::array<std::uint8_t, 12> scales;
  std::array<std::uint8_t, 32> high;  // fifth bit of weight i of group g: bit g of byte i
  std::array<std::uint8_t, 128> q;
  void decode(float* out) const {
    const GroupScales group(d, dmin, scales);
    for (std::size_t g = 0; g < 8; ++g) {
      const std::uint8_t* byte = q.data() + g / 2 * 32;
      const std::size_t shift = g % 2 * 4;
      const float scale = group.scale[g];
      const float low = group.low[g];
      for (std::size_t i = 0; i < 32; ++i) {
        const int five = ((byte[i] >> shift) & 15) | (((high[i] >> g) & 1) << 4);
        out[32 * g + i] = scale * static_cast<float>(five) - low;
      }
    }
  }
};

struct Q6K {
  std::array<std::uint8_t, 128> q;    // low 4 bits
  std::array<std::uint8_t, 64> high;  // upper 2 bits
  std::array<std::int8_t, 16> scales;
  Bytes2 d;
  void decode(float* out) const {
    const float of_scale = half_of(d);
    for (std::size_t g = 0; g < 8; ++g) {  // 32 weights, two scales
      const std::uint8_t* low = q.data() + g / 4 * 64 + g % 2 * 32;
      const std::uint8_t* top = high.data() + g / 4 * 32;
      const std::size_t low_shift = g / 2 % 2 * 4;
      const std::size_t top_shift = g % 4 * 2;
      for (std::size_t part = 0; part < 2; ++part) {
        const float scale = of_scale * static_cast<float>(scales[2 * g + part]);
        for (std::size_t i = 16 * part; i < 16 * part + 16; ++i) {
          const int six = ((low[i] >> low_shift) & 15) | (((top[i] >> top_shift) & 3) << 4);
          out[32 * g + i] = scale * static_cast<float>(six - 32);
        }
      }
    }
  }
};

// ---- The same for types without blocks: 32 at a time, so that the loop has a known length -------

struct F16 {
  std::array<std::uint16_t, 32> bits;
  void decode(float* out) const {
    for (std::size_t i = 0; i < 32; ++i) out[i] = half_to_float(bits[i]);
  }
};

struct Bf16 {
  std::array<std::uint16_t, 32> bits;
  void decode(float* out) const {
    for (std::size_t i = 0; i < 32; ++i)
      out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(bits[i]) << 16U);
  }
};

template <typename Block, std::int64_t kWeights>
void decode_blocks(const std::byte* bytes, std::int64_t count, float* out) {
  assert(count % kWeights == 0);
  for (std::int64_t done = 0; done < count; done += kWeights) {
    Block block;
    std::memcpy(&block, bytes, sizeof(Block));
    alignas(64) std::array<float, static_cast<std::size_t>(kWeights)> values;
    block.decode(values.data());
    std::memcpy(out + done, values.data(), sizeof(values));
    bytes += sizeof(Block);
  }
}

template <typename Block>
void decode_singles(const std::byte* bytes, std::int64_t count, float* out) {
  const std::int64_t whole = count / 32 * 32;
  decode_blocks<Block, 32>(bytes, whole, out);
  Block rest{};
  const auto left = static_cast<std::size_t>(count - whole);
  std::memcpy(rest.bits.data(), bytes + whole * 2, left * 2);
  std::array<float, 32> values;
  rest.decode(values.data());
  std::copy_n(values.begin(), left, out + whole);
}

void copy_f32(const std::byte* bytes, std::int64_t count, float* out) {
  std::memcpy(out, bytes, static_cast<std::size_t>(count) * sizeof(float));
}

// All that depends on a type, in the order of WeightType.
struct TypeInfo {
  std::string_view name;
  std::int64_t block, bytes;
  void (*widen)(const std::byte* bytes, std::int64_t count, float* out);
};
template <typename Block, std::int64_t kWeights>
constexpr TypeInfo blocks(std::string_view name) {
  return {name, kWeights, sizeof(Block), decode_blocks<Block, kWeights>};
}
constexpr std::array<TypeInfo, 11> kTypes{{{"F32", 1, 4, copy_f32},
                                           {"F16", 1, 2, decode_singles<F16>},
                                           {"BF16", 1, 2, decode_singles<Bf16>},
                                           blocks<Q8_0, 32>("Q8_0"),
                                           blocks<Q4_0, 32>("Q4_0"),
                                           blocks<Q4_1, 32>("Q4_1"),
                                           blocks<Q5_0, 32>("Q5_0"),
                                           blocks<Q5_1, 32>("Q5_1"),
                                           blocks<Q4K, 256>("Q4_K"),
                                           blocks<Q5K, 256>("Q5_K"),
                                           blocks<Q6K, 256>("Q6_K")}};
static_assert(kTypes[static_cast<std::size_t>(WeightType::q6_k)].name == "Q6_K");
static_assert(sizeof(Q8_0) == 34 && sizeof(Q4_0) == 18 && sizeof(Q4_1) == 20 &&
              sizeof(Q5_0) == 22 && sizeof(Q5_1) == 24 && sizeof(Q4K) == 144 &&
              sizeof(Q5K) == 176 && sizeof(Q6K) == 210);

const TypeInfo& info_of(WeightType type) { return kTypes[static_cast<std::size_t>(type)]; }

}  // namespace

std::string_view weight_type_name(WeightType type) { return info_of(type).name; }
std::int64_t weight_block(WeightType type) { return info_of(type).block; }
std::int64_t weight_block_bytes(WeightType type) { return info_of(type).bytes; }

std::optional<WeightType> weight_type_named(std::string_view name) {
  const auto* found = std::find_if(kTypes.begin(), kTypes.end(),
                                   [&](const TypeInfo& type) { return type.name == name; });
  if (found == kTypes.end()) return std::nullopt;
  return static_cast<WeightType>(found - kTypes.begin());
}

std::string weight_type_names() {
  std::string text;
  for (const TypeInfo& type : kTypes) {
    if (!text.empty()) text += &type == &kTypes.back() ? " or " : ", ";
    text += type.name;
  }
  return text;
}

void widen_weights(WeightType type, const std::byte* bytes, std::int64_t count, float* out) {
  if (count > 0) info_of(type).widen(bytes, count, out);
}

std::int64_t WeightMatrix::stored_row(std::int64_t row) const {
  if (rope_heads == 0) return row;
  const std::int64_t dim = rows / rope_heads;
  const std::int64_t in_head = row % dim;
  return row - in_head + in_head % (dim / 2) * 2 + in_head / (dim / 2);
}

void widen_rows(const WeightMatrix& matrix, std::int64_t first, std::int64_t rows, float* out) {
  assert(first >= 0 && first + rows <= matrix.rows);
  const std::int64_t stride =
      matrix.columns / weight_block(matrix.type) * weight_block_bytes(matrix.type);
  if (matrix.rope_heads == 0) {
    widen_weights(matrix.type, matrix.bytes.data() + first * stride, rows * matrix.columns, out);
    return;
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    widen_weights(matrix.type, matrix.bytes.data() + matrix.stored_row(first + r) * stride,
                  matrix.columns, out + r * matrix.columns);
  }
}

}  // namespace kvspan::tracegen
