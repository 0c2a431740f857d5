// SPDX-License-Identifier: Apache-2.0
// One value a row, as views read it: single rows, and the extremes of ranges of rows. How long a
// range is does not matter: extremes come from stored levels, never from a walk over all rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "sim/policy/policy.h"
#include "sim/report/timeline_writer.h"
#include "sim/trace/safetensors.h"

namespace kvspan::gui {

struct Extremes {
  double low = 0, high = 0;  // NaN: no value there
};

class Series {
 public:
  virtual ~Series() = default;
  [[nodiscard]] virtual RowIndex rows() const = 0;
  // NaN where nothing was measured. REQUIRES: 0 <= row < rows().
  [[nodiscard]] virtual double at(RowIndex row) const = 0;
  // Of rows [begin, end). REQUIRES: 0 <= begin < end <= rows().
  [[nodiscard]] virtual Extremes over(RowIndex begin, RowIndex end) const = 0;
  // The first row in [begin, end) that has their largest value.
  [[nodiscard]] virtual RowIndex row_of_high(RowIndex begin, RowIndex end) const = 0;
};
using SeriesPtr = std::shared_ptr<const Series>;

// A series of a --timeline file with its levels, mapped. `file` stays open as long as the series.
// Errors: TraceError naming the tensor when a level is missing or has another shape.
[[nodiscard]] SeriesPtr series_of_levels(std::shared_ptr<const TensorSet> file,
                                         const std::string& name, RowIndex rows);

// Values that hold from rows[i] until rows[i + 1] (a result JSON's timeline); the first one also
// before it.
// REQUIRES: rows ascending, as many as values, at least one.
[[nodiscard]] SeriesPtr series_of_steps(std::vector<RowIndex> rows, std::vector<double> values,
                                        RowIndex total_rows);

// One value a row in memory, kept as the points where its slope changes.
// REQUIRES: at least one value.
[[nodiscard]] SeriesPtr series_of_values(std::span<const std::int64_t> values);

// Resident entries of one (layer, head): points joined by straight lines (see change_points()).
//   rows, entries  little-endian I64, not necessarily aligned, of what `owner` keeps
class Polygon {
 public:
  Polygon(std::shared_ptr<const void> owner, std::span<const std::byte> rows,
          std::span<const std::byte> entries)
      : owner_(std::move(owner)), rows_(rows), entries_(entries) {}
  // Of points in memory.
  [[nodiscard]] static Polygon of(ChangePoints points);
  [[nodiscard]] std::int64_t at(RowIndex row) const;
  // The sum of at() over all rows; reads all points.
  [[nodiscard]] double entry_rows() const;

 private:
  [[nodiscard]] std::int64_t points() const;
  [[nodiscard]] static std::int64_t point(std::span<const std::byte> column, std::int64_t i);
  std::shared_ptr<const void> owner_;
  std::span<const std::byte> rows_, entries_;
};

}  // namespace kvspan::gui
