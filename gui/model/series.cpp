// SPDX-License-Identifier: Apache-2.0
#include "gui/model/series.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "gui/model/numbers.h"
#include "sim/base/error.h"

namespace kvspan::gui {
namespace {

constexpr RowIndex kPointsPerPoint = 64;  // points of one level per point of the next: 2^6

template <class T>
T element(std::span<const std::byte> bytes, std::int64_t at) {
  T value;
  std::memcpy(&value, bytes.data() + index(at) * sizeof value, sizeof value);
  return value;
}

// NaN is no value: anything is better.
void take(Extremes& best, double low, double high) {
  if (!(best.low <= low)) best.low = std::isnan(low) ? best.low : low;
  if (!(best.high >= high)) best.high = std::isnan(high) ? best.high : high;
}

//   level 0   . . . . . . . . . . . . . . . .     one point a row
//   level 1   |     min, max of 64    |   ...
//   level 2   |     min, max of 64 of these ...
//
// A range takes the points of level 0 up to the next multiple of 64 from both of its ends, then
// those of level 1 up to the next multiple of 64, ...: at most 2 * 64 points a level, and exact.
template <class T>
class LevelSeries final : public Series {
 public:
  struct Level {
    std::span<const std::byte> low, high;
  };
  // owner: keeps what the levels point to
  LevelSeries(std::shared_ptr<const void> owner, std::vector<Level> levels, RowIndex rows)
      : owner_(std::move(owner)), levels_(std::move(levels)), rows_(rows) {}

  [[nodiscard]] RowIndex rows() const override { return rows_; }
  [[nodiscard]] double at(RowIndex row) const override {
    return static_cast<double>(element<T>(levels_[0].low, row));
  }
  [[nodiscard]] Extremes over(RowIndex begin, RowIndex end) const override {
    Extremes best{kNone, kNone};
    visit(begin, end, [&](std::size_t level, std::int64_t point) {
      take(best, static_cast<double>(element<T>(levels_[level].low, point)),
           static_cast<double>(element<T>(levels_[level].high, point)));
    });
    return best;
  }
  [[nodiscard]] RowIndex row_of_high(RowIndex begin, RowIndex end) const override {
    std::size_t level = 0;
    std::int64_t best = begin;
    double high = kNone;
    visit(begin, end, [&](std::size_t at_level, std::int64_t point) {
      const auto value = static_cast<double>(element<T>(levels_[at_level].high, point));
      const auto before = [&] { return point << (6 * at_level) < best << (6 * level); };
      if (std::isnan(value) || value < high || (value == high && !before())) return;
      level = at_level;
      best = point;
      high = value;
    });
    while (level-- > 0) {
      const std::int64_t last = std::min((best + 1) * kPointsPerPoint, size_of(level));
      best *= kPointsPerPoint;
      const auto value = [&](std::int64_t i) {
        return static_cast<double>(element<T>(levels_[level].high, i));
      };
      for (std::int64_t i = best; i < last; ++i) {
        if (!(value(best) >= value(i)) && !std::isnan(value(i))) best = i;
      }
    }
    return best;
  }

 private:
  [[nodiscard]] std::int64_t size_of(std::size_t level) const {
    return static_cast<std::int64_t>(levels_[level].low.size() / sizeof(T));
  }

  template <class Visit>
  void visit(RowIndex begin, RowIndex end, const Visit& visit_point) const {
    assert(0 <= begin && begin < end && end <= rows_);
    for (std::size_t level = 0; begin < end; ++level) {
      const std::int64_t size = size_of(level);
      const bool last = level + 1 == levels_.size() || end - begin <= 2 * kPointsPerPoint;
      for (; begin < end && (last || begin % kPointsPerPoint != 0); ++begin)
        visit_point(level, begin);
      for (; begin < end && end % kPointsPerPoint != 0 && end != size; --end)
        visit_point(level, end - 1);
      if (begin == end) return;
      begin /= kPointsPerPoint;
      end = (end + kPointsPerPoint - 1) / kPointsPerPoint;
    }
  }

  std::shared_ptr<const void> owner_;
  std::vector<Level> levels_;
  RowIndex rows_;
};

std::span<const std::byte> tensor_of(const TensorSet& file, const std::string& name, Dtype dtype,
                                     std::int64_t size) {
  const TensorView* tensor = file.find(name);
  const std::string path = file.files().empty() ? "" : file.files().front().string();
  if (tensor == nullptr) {
    throw TraceError(fmt::format("{}: tensor '{}' is missing", path, name));
  }
  if (tensor->dtype != dtype || tensor->shape != std::vector<std::int64_t>{size}) {
    throw TraceError(fmt::format("{}: tensor '{}' is {} [{}], expected {} [{}]", path, name,
                                 dtype_name(tensor->dtype), fmt::join(tensor->shape, ", "),
                                 dtype_name(dtype), size));
  }
  return tensor->bytes;
}

template <class T>
SeriesPtr read_levels(std::shared_ptr<const TensorSet> file, const std::string& name, Dtype dtype,
                      RowIndex rows) {
  std::vector<typename LevelSeries<T>::Level> levels;
  const auto base = tensor_of(*file, name, dtype, rows);
  levels.push_back({base, base});
  for (std::int64_t points = rows; points > kPointsPerPoint;) {
    points = (points + kPointsPerPoint - 1) / kPointsPerPoint;
    const auto k = levels.size();
    levels.push_back({tensor_of(*file, fmt::format("{}.min.{}", name, k), dtype, points),
                      tensor_of(*file, fmt::format("{}.max.{}", name, k), dtype, points)});
  }
  return std::make_shared<LevelSeries<T>>(std::move(file), std::move(levels), rows);
}

// Levels of values in memory.
SeriesPtr levels_of(std::vector<std::int64_t> values) {
  const auto rows = static_cast<RowIndex>(values.size());
  auto low = std::make_shared<std::vector<std::vector<std::int64_t>>>();
  auto high = std::make_shared<std::vector<std::vector<std::int64_t>>>();
  low->push_back(values);
  high->push_back(std::move(values));
  while (static_cast<RowIndex>(low->back().size()) > kPointsPerPoint) {
    std::vector<std::int64_t> least, most;
    for (std::size_t i = 0; i < low->back().size(); i += kPointsPerPoint) {
      const std::size_t end = std::min<std::size_t>(i + kPointsPerPoint, low->back().size());
      const auto part = [&](const std::vector<std::int64_t>& level) {
        return std::span(level).subspan(i, end - i);
      };
      least.push_back(std::ranges::min(part(low->back())));
      most.push_back(std::ranges::max(part(high->back())));
    }
    low->push_back(std::move(least));
    high->push_back(std::move(most));
  }
  std::vector<LevelSeries<std::int64_t>::Level> levels;
  for (std::size_t k = 0; k < low->size(); ++k) {
    levels.push_back({std::as_bytes(std::span((*low)[k])), std::as_bytes(std::span((*high)[k]))});
  }
  return std::make_shared<LevelSeries<std::int64_t>>(
      std::make_shared<std::pair<decltype(low), decltype(high)>>(low, high), std::move(levels),
      rows);
}

// Straight lines between points: extremes of a range are at its ends or at points inside it.
class LineSeries final : public Series {
 public:
  explicit LineSeries(ChangePoints points)
      : rows_(points.rows),
        values_(levels_of(points.entries)),
        line_(Polygon::of(std::move(points))) {}
  [[nodiscard]] RowIndex rows() const override { return rows_.back() + 1; }
  [[nodiscard]] double at(RowIndex row) const override {
    return static_cast<double>(line_.at(row));
  }
  [[nodiscard]] Extremes over(RowIndex begin, RowIndex end) const override {
    Extremes best{kNone, kNone};
    take(best, at(begin), at(begin));
    take(best, at(end - 1), at(end - 1));
    if (const auto [first, last] = points_in(begin, end); first < last) {
      const Extremes inside = values_->over(first, last);
      take(best, inside.low, inside.high);
    }
    return best;
  }
  [[nodiscard]] RowIndex row_of_high(RowIndex begin, RowIndex end) const override {
    RowIndex best = begin;
    if (const auto [first, last] = points_in(begin, end); first < last) {
      const RowIndex point = rows_[index(values_->row_of_high(first, last))];
      if (at(point) > at(best)) best = point;
    }
    return at(end - 1) > at(best) ? end - 1 : best;
  }

 private:
  // Indices [first, last) of the points in rows [begin, end).
  [[nodiscard]] std::pair<std::int64_t, std::int64_t> points_in(RowIndex begin,
                                                                RowIndex end) const {
    const auto place = [&](RowIndex row) {
      return std::lower_bound(rows_.begin(), rows_.end(), row) - rows_.begin();
    };
    return {place(begin), place(end)};
  }
  std::vector<RowIndex> rows_;
  SeriesPtr values_;  // of the points
  Polygon line_;
};

class StepSeries final : public Series {
 public:
  StepSeries(std::vector<RowIndex> rows, std::vector<double> values, RowIndex total)
      : rows_(std::move(rows)), values_(std::move(values)), total_(total) {}
  [[nodiscard]] RowIndex rows() const override { return total_; }
  [[nodiscard]] double at(RowIndex row) const override { return values_[step_of(row)]; }
  [[nodiscard]] Extremes over(RowIndex begin, RowIndex end) const override {
    Extremes best{kNone, kNone};
    for (std::size_t i = step_of(begin); i <= step_of(end - 1); ++i) {
      take(best, values_[i], values_[i]);
    }
    return best;
  }
  [[nodiscard]] RowIndex row_of_high(RowIndex begin, RowIndex end) const override {
    const std::size_t first = step_of(begin);
    std::size_t best = first;
    for (std::size_t i = first; i <= step_of(end - 1); ++i) {
      if (!(values_[best] >= values_[i]) && !std::isnan(values_[i])) best = i;
    }
    return best == first ? begin : rows_[best];
  }

 private:
  [[nodiscard]] std::size_t step_of(RowIndex row) const {
    const auto after = std::upper_bound(rows_.begin(), rows_.end(), row);
    return after == rows_.begin() ? 0 : static_cast<std::size_t>(after - rows_.begin()) - 1;
  }
  std::vector<RowIndex> rows_;
  std::vector<double> values_;
  RowIndex total_;
};

}  // namespace

SeriesPtr series_of_levels(std::shared_ptr<const TensorSet> file, const std::string& name,
                           RowIndex rows) {
  const TensorView* base = file->find(name);
  if (base != nullptr && base->dtype == Dtype::f32) {
    return read_levels<float>(std::move(file), name, Dtype::f32, rows);
  }
  return read_levels<std::int64_t>(std::move(file), name, Dtype::i64, rows);
}

SeriesPtr series_of_steps(std::vector<RowIndex> rows, std::vector<double> values,
                          RowIndex total_rows) {
  assert(!rows.empty() && rows.size() == values.size());
  return std::make_shared<StepSeries>(std::move(rows), std::move(values), total_rows);
}

SeriesPtr series_of_values(std::span<const std::int64_t> values) {
  ChangePoints points;
  const auto last = values.size() - 1;
  for (std::size_t i = 0; i <= last; ++i) {
    const bool straight =
        i > 0 && i < last && values[i + 1] - values[i] == values[i] - values[i - 1];
    if (straight) continue;
    points.rows.push_back(static_cast<RowIndex>(i));
    points.entries.push_back(values[i]);
  }
  return std::make_shared<LineSeries>(std::move(points));
}

Polygon Polygon::of(ChangePoints points) {
  const auto kept = std::make_shared<const ChangePoints>(std::move(points));
  return {kept, std::as_bytes(std::span(kept->rows)), std::as_bytes(std::span(kept->entries))};
}

std::int64_t Polygon::points() const {
  return static_cast<std::int64_t>(rows_.size() / sizeof(std::int64_t));
}

// A file may say anything: within these limits no sum or product overflows.
std::int64_t Polygon::point(std::span<const std::byte> column, std::int64_t i) {
  constexpr std::int64_t kMost = std::int64_t{1} << 61U;
  return std::clamp(element<std::int64_t>(column, i), -kMost, kMost);
}

std::int64_t Polygon::at(RowIndex row) const {
  if (points() == 0) return 0;
  std::int64_t low = 0;
  std::int64_t high = points();
  while (high - low > 1) {  // the last point at or before the row
    const std::int64_t middle = low + (high - low) / 2;
    (point(rows_, middle) <= row ? low : high) = middle;
  }
  const auto from = point(rows_, low);
  const auto entries = point(entries_, low);
  if (low + 1 == points() || row <= from) return entries;
  const auto to = point(rows_, low + 1);
  const auto then = point(entries_, low + 1);
  // Between two points every row adds the same whole number. The search leaves from < row < to,
  // even where rows do not ascend.
  return entries + (then - entries) / (to - from) * (row - from);
}

double Polygon::entry_rows() const {
  if (points() == 0) return 0;
  // A trapezoid from each point up to, but not with, the next.
  auto sum = static_cast<double>(point(entries_, points() - 1));
  for (std::int64_t i = 0; i + 1 < points(); ++i) {
    const auto rows = static_cast<double>(point(rows_, i + 1) - point(rows_, i));
    const auto from = static_cast<double>(point(entries_, i));
    const auto to = static_cast<double>(point(entries_, i + 1));
    sum += rows * from + (to - from) * (rows - 1) / 2;
  }
  return sum;
}

}  // namespace kvspan::gui
