// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/turboquant_rule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "sim/policies/shared/quantise.h"

namespace kvspan::policies {
namespace {

double density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }
double share_below(double x) { return std::erfc(-x / std::numbers::sqrt2) / 2; }

// The level of index i reaches from here to that of i + 1.
double edge(std::span<const double> levels, std::size_t i) {
  const double infinity = std::numeric_limits<double>::infinity();
  if (i == 0) return -infinity;
  return i == levels.size() ? infinity : (levels[i - 1] + levels[i]) / 2;
}

}  // namespace

std::vector<double> normal_levels(int bits) {
  std::vector<double> levels;
  const int count = 1 << bits;
  for (int i = 0; i < count; ++i) levels.push_back(3.5 * (2.0 * i + 1 - count) / count);
  for (double moved = 1; moved > 1e-12;) {
    std::vector<double> next;
    moved = 0;
    for (std::size_t i = 0; i < levels.size(); ++i) {  // the mean of what is nearest to a level
      const double a = edge(levels, i), b = edge(levels, i + 1);
      next.push_back((density(a) - density(b)) / (share_below(b) - share_below(a)));
      moved = std::max(moved, std::abs(next.back() - levels[i]));
    }
    levels = next;
  }
  return levels;
}

namespace {

std::vector<double> solved(int bits) {
  std::vector<double> levels;
  const int count = 1 << bits;
  for (int i = 0; i < count; ++i) levels.push_back(3.5 * (2.0 * i + 1 - count) / count);
  constexpr double kEnd = 3 * 3.5;
  constexpr int kSteps = 200, kRounds = 200;
  double moved = 1;
  for (int round = 0; round < kRounds && moved > 1e-9; ++round) {
    std::vector<double> next;
    moved = 0;
    for (std::size_t i = 0; i < levels.size(); ++i) {
      const double a = std::max(edge(levels, i), -kEnd), b = std::min(edge(levels, i + 1), kEnd);
      double moment = 0, mass = 0;
      for (int k = 0; k <= kSteps; ++k) {  // the trapezoid rule
        const double x = a + k * (b - a) / kSteps;
        const double weight = (k == 0 || k == kSteps ? 0.5 : 1) * density(x);
        moment += weight * x;
        mass += weight;
      }
      next.push_back(moment / mass);
      moved = std::max(moved, std::abs(next.back() - levels[i]));
    }
    levels = next;
  }
  return levels;
}

}  // namespace

std::vector<double> levels_of_vllm(int bits) {
  static const std::vector<double> three = solved(3), four = solved(4);
  return bits == 3 ? three : four;
}

void hadamard(std::span<double> x) {
  for (std::size_t step = 1; step < x.size(); step *= 2) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      if ((i & step) != 0) continue;
      const double a = x[i], b = x[i + step];
      x[i] = a + b;
      x[i + step] = a - b;
    }
  }
  const double scale = 1 / std::sqrt(static_cast<double>(x.size()));
  for (double& value : x) value *= scale;
}

void through_levels(std::span<float> key, std::span<const double> levels) {
  const double length = std::sqrt(squared_norm(key));
  const double spread = std::sqrt(static_cast<double>(key.size()));  // of 1 / deviation
  std::vector<double> x;
  for (const float value : key) x.push_back(static_cast<double>(value) / (length + 1e-8));
  hadamard(x);
  double square = 0;
  for (double& value : x) {
    std::size_t i = 0;
    while (i + 1 < levels.size() && value * spread >= edge(levels, i + 1)) ++i;
    value = levels[i];
    square += value * value;
  }
  hadamard(x);
  const double scale =
      static_cast<double>(round_half(static_cast<float>(length))) / std::sqrt(square);
  for (std::size_t i = 0; i < key.size(); ++i) key[i] = static_cast<float>(x[i] * scale);
}

void through_steps(std::span<float> value, int bits) {
  const auto [least, most] = std::minmax_element(value.begin(), value.end());
  const float zero = *least;
  const auto highest = static_cast<float>((1 << bits) - 1);
  const float step = std::max((*most - zero) / highest, 1e-8F);
  const float held_step = round_half(step), held_zero = round_half(zero);
  for (float& x : value) {
    const float code = std::clamp(std::floor((x - zero) / step + 0.5F), 0.0F, highest);
    x = code * held_step + held_zero;
  }
}

float round_e4m3(float x) {
  const double size = std::abs(static_cast<double>(x));
  if (size == 0) return x;
  const int exponent = std::max(std::ilogb(size), -6);  // subnormal below
  const double step = std::ldexp(1.0, exponent - 3);
  const double near = std::min(std::nearbyint(size / step) * step, 448.0);
  return static_cast<float>(std::copysign(near, static_cast<double>(x)));
}

}  // namespace kvspan::policies
