// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/attention/element.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstring>

#include <Eigen/Core>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/half.h"

namespace kvspan::gpu_replay {
namespace {

constexpr float kLargestE4m3 = 448;

}  // namespace

Element element_of(std::int64_t bytes, bool bf16) {
  if (bytes == 4) return Element::f32;
  if (bytes == 2) return bf16 ? Element::bf16 : Element::f16;
  if (bytes == 1) return Element::fp8;
  throw ConfigError(fmt::format(
      "--kv-bytes: found {}, expected 1 (fp8), 2 (fp16, bf16) or 4 (fp32) where attention "
      "is replayed",
      bytes));
}

std::int64_t bytes_of(Element element) {
  return element == Element::f32 ? 4 : element == Element::fp8 ? 1 : 2;
}

std::string name_of(Element element) {
  switch (element) {
    case Element::f32:
      return "fp32";
    case Element::f16:
      return "fp16";
    case Element::bf16:
      return "bf16";
    case Element::fp8:
      break;
  }
  return "fp8 (e4m3)";
}

std::uint8_t to_e4m3(float x) {
  const std::uint8_t sign = std::signbit(x) ? 0x80 : 0;
  const float size = std::fabs(x);
  if (size >= kLargestE4m3) return sign | 0x7e;
  if (size == 0) return sign;
  // The step between neighbours: 2^-9 below 2^-6, else an eighth of the power of two below.
  int exponent = 0;
  (void)std::frexp(size, &exponent);
  const int power = std::max(exponent - 1, -6);
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(size, 3 - power)));
  // 8 steps carry into the next power; below the first one they are the bits themselves.
  return static_cast<std::uint8_t>(sign | (((power + 6) << 3) + steps));
}

float from_e4m3(std::uint8_t bits) {
  const int exponent = bits >> 3 & 0xf;
  const int mantissa = bits & 7;
  if (exponent == 0xf && mantissa == 7) return std::nanf("");
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                   : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (bits & 0x80) != 0 ? -size : size;
}

void encode(std::span<const float> x, Element element, float scale, std::span<std::byte> out) {
  assert(out.size() == x.size() * static_cast<std::size_t>(bytes_of(element)));
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (element == Element::f32) {
      std::memcpy(out.data() + 4 * i, &x[i], 4);
    } else if (element == Element::f16) {
      const Eigen::half half(x[i]);
      std::memcpy(out.data() + 2 * i, &half, 2);
    } else if (element == Element::bf16) {
      const Eigen::bfloat16 half(x[i]);
      std::memcpy(out.data() + 2 * i, &half, 2);
    } else {
      out[i] = static_cast<std::byte>(to_e4m3(x[i] / scale));
    }
  }
}

void decode(std::span<const std::byte> bytes, Element element, float scale, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (element == Element::f32) {
      std::memcpy(&out[i], bytes.data() + 4 * i, 4);
    } else if (element == Element::f16) {
      std::uint16_t half = 0;
      std::memcpy(&half, bytes.data() + 2 * i, 2);
      out[i] = half_to_float(half);
    } else if (element == Element::bf16) {
      std::uint16_t top = 0;
      std::memcpy(&top, bytes.data() + 2 * i, 2);
      out[i] = std::bit_cast<float>(std::uint32_t{top} << 16U);
    } else {
      out[i] = from_e4m3(static_cast<std::uint8_t>(bytes[i])) * scale;
    }
  }
}

float scale_of(float largest, Element element) {
  return element == Element::fp8 && largest > 0 ? largest / kLargestE4m3 : 1;
}

}  // namespace kvspan::gpu_replay
