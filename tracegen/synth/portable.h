// SPDX-License-Identifier: Apache-2.0
// Random numbers and elementary functions whose bits are the same on every machine: integers, and
// IEEE operations that are exact or correctly rounded (+ - * / sqrt floor ldexp frexp). The
// standard library's distributions and transcendental functions promise no such thing. Files that
// include this are compiled without contraction to fused multiply-add.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>

namespace kvspan::tracegen::portable {

// 64 bits that depend on the key words only, so that any number is computed without the ones
// before.
// Source: finaliser of SplitMix64 (Steele, Lea, Flood 2014), chained over the words.
inline std::uint64_t random_bits(std::initializer_list<std::uint64_t> key) {
  std::uint64_t x = 0;
  for (const std::uint64_t word : key) {
    x += word + 0x9E3779B97F4A7C15U;
    x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
    x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
    x ^= x >> 31U;
  }
  return x;
}

// In (0, 1).
inline double uniform(std::uint64_t bits) {
  return (static_cast<double>(bits >> 11U) + 0.5) * 0x1p-53;
}

inline double exp(double x) {
  if (x < -700) return 0;
  if (x > 700) x = 700;
  const double k = std::floor(x * 1.4426950408889634 + 0.5);
  const double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
  double sum = 1;
  for (int i = 13; i > 0; --i) sum = 1 + sum * r / i;
  return std::ldexp(sum, static_cast<int>(k));
}

// REQUIRES: x > 0
inline double log(double x) {
  int e = 0;
  double m = std::frexp(x, &e);  // [1/2, 1)
  if (m < 0.70710678118654752) {
    m *= 2;
    --e;
  }
  const double s = (m - 1) / (m + 1);
  double sum = 0;
  for (int i = 25; i > 0; i -= 2) sum = 1.0 / i + sum * s * s;
  return 2 * s * sum + e * 0.69314718055994531;
}

// Sine and cosine of `turns` full turns.
struct SinCos {
  double sin, cos;
};
inline SinCos sin_cos(double turns) {
  const double f = turns - std::floor(turns + 0.5);
  const double quarter = std::floor(4 * f + 0.5);
  const double r = (f - quarter / 4) * 6.283185307179586;
  const double r2 = r * r;
  double s = 1;
  double c = 1;
  for (int i = 16; i > 0; i -= 2) {
    s = 1 - s * r2 / (i * (i + 1));
    c = 1 - c * r2 / (i * (i - 1));
  }
  s *= r;
  switch (static_cast<int>(quarter) & 3) {
    case 0:
      return {s, c};
    case 1:
      return {c, -s};
    case 2:
      return {-s, -c};
    default:
      return {-c, s};
  }
}

// Standard normal (Box and Muller 1958).
inline double normal(std::uint64_t bits) {
  const double radius = std::sqrt(-2 * log(uniform(bits)));
  return radius * sin_cos(uniform(random_bits({bits}))).cos;
}

}  // namespace kvspan::tracegen::portable
