// SPDX-License-Identifier: Apache-2.0
#include "sim/report/axes.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace kvspan {
namespace {

double nice_step(double range, int most) {
  const double wanted = range / std::max(1, most);
  const double power = std::pow(10.0, std::floor(std::log10(wanted)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= wanted * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

// Of the width.
double decode_share(std::int64_t tokens, std::int64_t prompt) {
  return std::max(0.25, static_cast<double>(tokens - prompt) / static_cast<double>(tokens));
}

}  // namespace

RowAxis make_row_axis(std::int64_t tokens, std::int64_t prompt, int columns) {
  RowAxis axis{tokens, prompt, columns, 0};
  const std::int64_t decode = tokens - prompt;
  if (decode <= 0) return axis;
  axis.decode_columns = std::clamp(
      static_cast<int>(std::lround(decode_share(tokens, prompt) * columns)), 1, columns - 1);
  axis.prefill_columns = columns - axis.decode_columns;
  return axis;
}

std::pair<std::int64_t, std::int64_t> RowAxis::rows(int column) const {
  const bool decode = column >= prefill_columns;
  const std::int64_t base = decode ? prompt : 0;
  const std::int64_t count = decode ? tokens - prompt : prompt;
  const std::int64_t width = decode ? decode_columns : prefill_columns;
  const std::int64_t at = column - (decode ? prefill_columns : 0);
  const std::int64_t begin = at * count / width;
  return {base + begin, base + std::max(begin + 1, (at + 1) * count / width)};
}

double RowAxis::position(double row) const {
  const auto n = static_cast<double>(prompt);
  if (row < n || decode_columns == 0) return (row + 0.5) / n * prefill_columns;
  return prefill_columns + (row - n + 0.5) / (static_cast<double>(tokens) - n) * decode_columns;
}

double RowAxis::stretch() const {
  if (decode_columns == 0) return 1;
  const double share = decode_share(tokens, prompt);
  return share / (1 - share) * static_cast<double>(prompt) / static_cast<double>(tokens - prompt);
}

std::string RowAxis::stretch_text() const {
  return fmt::format("{:.{}f}", stretch(), stretch() < 9.95 ? 1 : 0);
}

std::string RowAxis::wider() const {
  return stretch() > 1.05 ? fmt::format(" (rows {}x wider)", stretch_text()) : "";
}

std::vector<Tick> ticks(double low, double high, int most) {
  std::vector<Tick> result;
  if (!(high > low)) return result;
  const double step = nice_step(high - low, most);
  const int decimals = std::max(0, static_cast<int>(-std::floor(std::log10(step) + 1e-9)));
  const double slack = 1e-9 * step;
  for (double i = std::ceil((low - slack) / step); i * step <= high + slack; ++i) {
    const double value = i == 0 ? 0 : i * step;  // ceil() yields -0, which would be printed
    result.push_back({value, fmt::format("{:.{}f}", value, decimals)});
  }
  return result;
}

}  // namespace kvspan
