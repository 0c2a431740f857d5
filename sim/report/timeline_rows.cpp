// SPDX-License-Identifier: Apache-2.0
#include "sim/report/timeline_rows.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <utility>

namespace kvspan {
namespace {

constexpr std::size_t kMostRows = 4096;

using Rows = std::vector<std::size_t>;
using AllSeries = std::array<const std::vector<std::int64_t>*, 4>;

AllSeries series_of(const RunResult& run) {
  const Timeline& line = run.metrics.timeline;
  return {&line.resident_entries, &line.resident_bytes, &line.overhead_bytes, &line.active_entries};
}

Rows changed_rows(const RunResult& run) {
  const AllSeries series = series_of(run);
  const std::size_t rows = series.front()->size();
  Rows result;
  for (std::size_t row = 0; row < rows; ++row) {
    const auto differs = [&](const auto* values) { return (*values)[row] != (*values)[row - 1]; };
    const bool ends = row == 0 || row + 1 == rows;
    const float retained = retained_at(run, row);
    // NaN before a measured value compares unequal to it, which is what is wanted.
    if (ends || std::any_of(series.begin(), series.end(), differs) ||
        (std::isfinite(retained) && retained != retained_at(run, row - 1))) {
      result.push_back(row);
    }
  }
  return result;
}

// The first of `rows`, the last, and the peaks of the whole run.
Rows always_listed(const RunResult& run, const Rows& rows) {
  Rows always;
  if (!rows.empty()) always = {rows.front(), rows.back()};
  const auto peak = static_cast<std::size_t>(run.metrics.peak_bytes.row);
  if (peak < run.metrics.timeline.resident_entries.size()) always.push_back(peak);
  for (const auto* values : series_of(run)) {
    const auto largest = std::max_element(values->begin(), values->end());
    if (largest != values->end())
      always.push_back(static_cast<std::size_t>(largest - values->begin()));
  }
  return always;
}

Rows united(Rows a, const Rows& b) {
  a.insert(a.end(), b.begin(), b.end());
  std::sort(a.begin(), a.end());
  a.erase(std::unique(a.begin(), a.end()), a.end());
  return a;
}

// The extreme rows of each of `pieces` equal pieces of `rows`.
Rows thinned(const RunResult& run, const Rows& rows, std::size_t pieces) {
  const AllSeries series = series_of(run);
  Rows chosen;
  for (std::size_t piece = 0; piece < pieces; ++piece) {
    const std::size_t begin = piece * rows.size() / pieces;
    const std::size_t end = (piece + 1) * rows.size() / pieces;
    std::array<std::size_t, 5> extreme;
    extreme.fill(rows[begin]);
    for (std::size_t i = begin + 1; i < end; ++i) {
      for (std::size_t s = 0; s < series.size(); ++s) {
        if ((*series[s])[rows[i]] > (*series[s])[extreme[s]]) extreme[s] = rows[i];
      }
      // Memory is looked at for its maxima, retained attention for its minima.
      const float retained = retained_at(run, rows[i]);
      const float least = retained_at(run, extreme.back());
      if (retained < least || (std::isfinite(retained) && !std::isfinite(least)))
        extreme.back() = rows[i];
    }
    chosen.insert(chosen.end(), extreme.begin(), extreme.end());
  }
  return chosen;
}

}  // namespace

float retained_at(const RunResult& run, std::size_t row) {
  return run.fidelity && row < run.fidelity->row_mass.size() ? run.fidelity->row_mass[row] : NAN;
}

std::vector<std::size_t> timeline_rows(const RunResult& run) {
  const Rows rows = changed_rows(run);
  const Rows always = always_listed(run, rows);
  Rows whole = united(rows, always);
  if (whole.size() <= kMostRows) return whole;
  // A piece yields one to five rows: start with the most pieces and come down.
  std::size_t pieces = kMostRows - always.size();
  Rows chosen = united(thinned(run, rows, pieces), always);
  while (chosen.size() > kMostRows) {
    pieces = std::min(pieces - 1, pieces * kMostRows / chosen.size());
    chosen = united(thinned(run, rows, pieces), always);
  }
  return chosen;
}

}  // namespace kvspan
