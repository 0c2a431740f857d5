// SPDX-License-Identifier: Apache-2.0
#include "sim/report/svg/series.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "sim/report/listing.h"

namespace kvspan::svg {
namespace {

constexpr std::array<std::string_view, 6> kDashes{"",           "7 3",   "2.5 2.5",
                                                  "11 3 2.5 3", "4 1.5", "14 4"};

// The spec with every number replaced: runs that share it are one policy at several budgets.
std::string family_of(const RunResult& run) {
  std::string key;
  for (const char c : run.spec) {
    const bool digit = (c >= '0' && c <= '9') || c == '.';
    if (!digit)
      key += c;
    else if (key.empty() || key.back() != '#')
      key += '#';
  }
  return key;
}

}  // namespace

std::vector<Series> make_series(const RunReport& report) {
  std::vector<Series> all;
  std::vector<std::string> families;
  std::vector<std::size_t> members(kColours, 0);
  for (const std::size_t r : display_order(report)) {
    Series series;
    series.run = &report.runs[r];
    series.label = label_of(*series.run);
    series.number = fmt::format("{}", all.size() + 1);
    const std::string family = family_of(*series.run);
    const auto known = std::find(families.begin(), families.end(), family);
    series.family = static_cast<std::size_t>(known - families.begin());
    if (known == families.end()) families.push_back(family);
    const bool many = report.runs.size() > kColours;
    const std::size_t colour = (many ? series.family : all.size()) % kColours;
    series.colour = kPalette[colour];
    series.dash = kDashes[many ? members[colour]++ % kDashes.size() : 0];
    const PhaseFidelity* phase = judged_phase(*series.run);
    if (phase != nullptr && std::isfinite(phase->mass_mean)) series.retained = phase->mass_mean;
    if (series.retained && phase->mass_upper) series.retained_most = phase->mass_upper->mean;
    all.push_back(std::move(series));
  }
  return all;
}

}  // namespace kvspan::svg
