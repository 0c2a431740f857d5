// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>

namespace kvspan {

// The float of an IEEE half: exact, subnormals, infinities and NaN included; no branch, so that
// loops over it vectorise.
inline float half_to_float(std::uint32_t half) {
  const std::uint32_t exponent = half & 0x7C00U;
  const std::uint32_t sign = (half & 0x8000U) << 16U;
  // Normal: move the fields and rebias the exponent from 15 to 127, or where it is 31, to 255.
  const std::uint32_t top = 0U - ((exponent + 0x0400U) >> 15U);
  const std::uint32_t normal = ((half & 0x7FFFU) << 13U) + (112U << 23U) + (top & (112U << 23U));
  // Subnormal: m * 2^-24 = 2^-14 (1 + m / 1024) - 2^-14, exact and free of slow subnormal floats.
  const float small = std::bit_cast<float>(((half & 0x03FFU) << 13U) | (113U << 23U)) - 0x1p-14F;
  const std::uint32_t is_subnormal = 0U - ((exponent - 1U) >> 31U);
  return std::bit_cast<float>(sign | (std::bit_cast<std::uint32_t>(small) & is_subnormal) |
                              (normal & ~is_subnormal));
}

}  // namespace kvspan
