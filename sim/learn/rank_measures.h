// SPDX-License-Identifier: Apache-2.0
// How well scores order what they are about.
#pragma once

#include <span>

namespace kvspan {

// Probability that a positive scores above a negative, ties half. 0.5 if a class is empty.
[[nodiscard]] double area_under_curve(std::span<const double> scores,
                                      std::span<const double> labels);
// Kendall's tau-b in O(n log n) (Knight 1966). 0 if one side is constant.
[[nodiscard]] double kendall_tau(std::span<const double> a, std::span<const double> b);

}  // namespace kvspan
