// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/quantise.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan::policies {

float round_half(float x) {
  constexpr float kMost = 65504.0F;
  const float a = std::min(std::abs(x), kMost);
  int exponent = 0;
  (void)std::frexp(a, &exponent);
  const float step = std::ldexp(1.0F, std::max(exponent, -13) - 11);  // 11 bits; 2^-24 below 2^-14
  return std::copysign(std::min(std::nearbyint(a / step) * step, kMost), x);
}

void round_trip(std::span<float> values, int bits) {
  if (values.empty()) return;
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const auto levels = static_cast<float>((1 << bits) - 1);
  const float scale = round_half((*high - *low) / levels);
  const float zero = round_half(*low);
  for (float& x : values) {
    const float code =
        scale > 0 ? std::clamp(std::nearbyint((x - zero) / scale), 0.0F, levels) : 0.0F;
    x = code * scale + zero;
  }
}

void round_trip_groups(std::span<float> values, int bits, std::int64_t group) {
  for (std::size_t i = 0; i < values.size(); i += index(group))
    round_trip(values.subspan(i, std::min(index(group), values.size() - i)), bits);
}

std::int64_t packed_bytes(std::int64_t dim, int bits, std::int64_t group) {
  return (dim * bits + 7) / 8 + (dim + group - 1) / group * 4;
}

std::int64_t floor_share(const Amount& share, std::int64_t n) {
  const std::int64_t whole = share.share_of(n);
  if (whole > 1) return whole;
  return (1.0 - share.one_minus_share()) * static_cast<double>(n) >= 1.0 - 1e-12 ? 1 : 0;
}

double share_argument(const Arguments& arguments, const std::string& name) {
  const Amount amount = arguments.amount(name);
  if (amount.kind != Amount::Kind::share) {
    throw ConfigError(fmt::format("{}({}): found {}, expected a share in per cent, as in 20%",
                                  arguments.policy(), name, amount.text));
  }
  return 1.0 - amount.one_minus_share();
}

Alive::Alive(const View& view, int head, const Decision& so_far) : tokens_(view.resident(head)) {
  if (so_far.evictions.empty()) return;
  storage_ = survivors(view, head, so_far);
  tokens_ = storage_;
}

std::span<const TokenIndex> Alive::from(TokenIndex token) const {
  const auto first = std::lower_bound(tokens_.begin(), tokens_.end(), token);
  return tokens_.subspan(index(first - tokens_.begin()));
}

}  // namespace kvspan::policies
