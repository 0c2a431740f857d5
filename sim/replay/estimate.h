// SPDX-License-Identifier: Apache-2.0
// What a random sample says of the whole.
#pragma once

#include <cstdint>
#include <span>

namespace kvspan {

// A mean, a share in [0, 1], with its 95 % interval.
struct Estimate {
  double mean = 0, low = 0, high = 0;
  std::int64_t drawn = 0, of = 0;
};

// The mean of `of` values from some of them, drawn without replacement: mean +- t s / sqrt(n)
// sqrt(1 - n / of), t of Student with n - 1 degrees of freedom; one value of several says nothing
// of the interval, which is all of [0, 1]. Values that are far from normal make it too narrow for
// small n (tests/studies/sample).
// REQUIRES: 1 <= size <= of. Source: Cochran, Sampling Techniques, 3rd edition, section 2.8.
[[nodiscard]] Estimate estimate_mean(std::span<const double> values, std::int64_t of);

}  // namespace kvspan
