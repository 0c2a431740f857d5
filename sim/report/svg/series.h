// SPDX-License-Identifier: Apache-2.0
// The runs of a report as an SVG shows them: names, numbers, colours.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sim/run/result.h"

namespace kvspan::svg {

inline constexpr std::size_t kColours = 8;  // more runs: one colour a family
// Okabe and Ito's, which the colour-blind can tell apart; grey instead of their yellow, which
// nobody can see on white.
inline constexpr std::array<std::string_view, kColours> kPalette{
    "#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8A8A8A"};
inline constexpr std::size_t kDirectLabels = 12;  // more runs are labelled by their number

struct Series {
  const RunResult* run = nullptr;
  std::string label;
  std::string number;  // in the legend, from 1
  std::size_t family = 0;
  std::string_view colour;
  std::string_view dash;
  std::optional<double> retained;       // attention, of decode rows (or all), as a share
  std::optional<double> retained_most;  // score traces: `retained` is the least, this the most
};

// In display order. Runs whose specs differ only in numbers are a family.
[[nodiscard]] std::vector<Series> make_series(const RunReport& report);

}  // namespace kvspan::svg
