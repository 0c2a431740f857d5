// SPDX-License-Identifier: Apache-2.0
#include "sim/report/timeline_writer.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <type_traits>

#include <fmt/format.h>

#include "sim/report/result_metadata.h"
#include "sim/trace/safetensors.h"

namespace kvspan {
namespace {

constexpr std::int64_t kFold = 64;  // points of one level per point of the next

using Entries = std::vector<SafetensorsWriter::Entry>;

// The next level: min or max of every 64 points. NaN, which compares false, never wins over a
// number.
template <class T>
std::vector<T> folded(const std::vector<T>& below, bool largest) {
  std::vector<T> result;
  for (std::size_t begin = 0; begin < below.size(); begin += kFold) {
    const std::size_t end = std::min(below.size(), begin + kFold);
    T extreme = below[begin];
    for (std::size_t i = begin + 1; i < end; ++i) {
      const bool better = largest ? below[i] > extreme : below[i] < extreme;
      if constexpr (std::is_floating_point_v<T>) {
        if (std::isnan(extreme)) extreme = below[i];
      }
      if (better) extreme = below[i];
    }
    result.push_back(extreme);
  }
  return result;
}

void declare_levels(const std::string& name, Dtype dtype, std::int64_t points, Entries& entries) {
  entries.push_back({name, dtype, {points}});
  for (int level = 1; points > kFold; ++level) {
    points = (points + kFold - 1) / kFold;
    entries.push_back({fmt::format("{}.min.{}", name, level), dtype, {points}});
    entries.push_back({fmt::format("{}.max.{}", name, level), dtype, {points}});
  }
}

template <class T>
void write_levels(SafetensorsWriter& writer, const std::string& name,
                  const std::vector<T>& series) {
  write_tensor(writer, name, series);
  std::vector<T> low = series;
  std::vector<T> high = series;
  for (int level = 1; low.size() > kFold; ++level) {
    low = folded(low, false);
    high = folded(high, true);
    write_tensor(writer, fmt::format("{}.min.{}", name, level), low);
    write_tensor(writer, fmt::format("{}.max.{}", name, level), high);
  }
}

// Calls visit(name, series) for every series of a run.
template <class Visit>
void for_each_series(const RunResult& run, std::size_t r, const Visit& visit) {
  const Timeline& line = run.metrics.timeline;
  visit(run_key(r, "entries"), line.resident_entries);
  visit(run_key(r, "bytes"), line.resident_bytes);
  visit(run_key(r, "overhead"), line.overhead_bytes);
  visit(run_key(r, "host"), line.host_bytes);
  visit(run_key(r, "active"), line.active_entries);
  if (run.fidelity) visit(run_key(r, "mass"), run.fidelity->row_mass);
}

// ---- Points -------------------------------------------------------------------------------------

// The points are found twice, once to be counted: together they may be as large as the ledger.
std::vector<std::int64_t> point_offsets(const Ledger& ledger) {
  std::vector<std::int64_t> offsets{0};
  for (int layer = 0; layer < ledger.layers; ++layer) {
    for (int head = 0; head < ledger.heads; ++head) {
      const ChangePoints points = change_points(ledger.deaths(layer, head));
      offsets.push_back(offsets.back() + static_cast<std::int64_t>(points.rows.size()));
    }
  }
  return offsets;
}

void write_points(SafetensorsWriter& writer, const Ledger& ledger, std::size_t r,
                  const std::vector<std::int64_t>& offsets) {
  for (int layer = 0; layer < ledger.layers; ++layer) {
    for (int head = 0; head < ledger.heads; ++head) {
      const ChangePoints points = change_points(ledger.deaths(layer, head));
      const std::int64_t index = std::int64_t{layer} * ledger.heads + head;
      const std::int64_t at = offsets[static_cast<std::size_t>(index)] * dtype_bytes(Dtype::i64);
      writer.write(run_key(r, "change_rows"), at, std::as_bytes(std::span(points.rows)));
      writer.write(run_key(r, "change_entries"), at, std::as_bytes(std::span(points.entries)));
    }
  }
}

}  // namespace

ChangePoints change_points(std::span<const std::uint32_t> deaths) {
  ChangePoints points;
  const std::size_t tokens = deaths.size();
  std::vector<std::int64_t> gone(tokens + 1, 0);
  for (const std::uint32_t death : deaths) ++gone[death];
  std::int64_t resident = 0;
  for (std::size_t row = 0; row < tokens; ++row) {
    // One entry is born in every row, so that slopes differ where numbers of deaths do.
    resident += 1 - gone[row];
    if (row == 0 || row + 1 == tokens || gone[row + 1] != gone[row]) {
      points.rows.push_back(static_cast<std::int64_t>(row));
      points.entries.push_back(resident);
    }
  }
  return points;
}

void write_timeline(const RunReport& report, const std::filesystem::path& path) {
  Entries entries;
  std::vector<std::vector<std::int64_t>> offsets(report.runs.size());
  for (std::size_t r = 0; r < report.runs.size(); ++r) {
    const RunResult& run = report.runs[r];
    for_each_series(run, r, [&]<class T>(const std::string& name, const std::vector<T>& series) {
      declare_levels(name, dtype_of<T>(), static_cast<std::int64_t>(series.size()), entries);
    });
    offsets[r] = point_offsets(run.ledger);
    entries.push_back({run_key(r, "change_rows"), Dtype::i64, {offsets[r].back()}});
    entries.push_back({run_key(r, "change_entries"), Dtype::i64, {offsets[r].back()}});
    entries.push_back(
        {run_key(r, "change_offsets"), Dtype::i64, {static_cast<std::int64_t>(offsets[r].size())}});
  }
  SafetensorsWriter writer(path, result_metadata(report, kTimelineFormat), entries);
  for (std::size_t r = 0; r < report.runs.size(); ++r) {
    const RunResult& run = report.runs[r];
    for_each_series(run, r, [&]<class T>(const std::string& name, const std::vector<T>& series) {
      write_levels(writer, name, series);
    });
    write_tensor(writer, run_key(r, "change_offsets"), offsets[r]);
    write_points(writer, run.ledger, r, offsets[r]);
  }
  writer.finish();
}

}  // namespace kvspan
