// SPDX-License-Identifier: Apache-2.0
#include "gui/model/columns.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include "gui/model/csv.h"
#include "gui/model/numbers.h"
#include "gui/model/stacking.h"
#include "sim/base/error.h"

namespace kvspan::gui {
namespace {

constexpr RowIndex kFold = 64;

}  // namespace

// ---- Units --------------------------------------------------------------------------------------

QString value_text(Quantity quantity, double value) {
  if (!std::isfinite(value)) return QString(QChar(0x2013));
  switch (quantity) {
    case Quantity::bytes:
      return bytes_text(value);
    case Quantity::entries:
      return count_text(std::llround(value));
    case Quantity::percent:
    case Quantity::mass:
      break;
  }
  return percent_text(value);
}

QString difference_text(Quantity quantity, double value) {
  const QString sign = value < 0 ? QString(QChar(0x2212)) : value > 0 ? "+" : "";
  return sign + value_text(quantity, std::abs(value));
}

QString rows_text(Rows rows) {
  if (rows.size() == 1) return "row " + count_text(rows.begin);
  return QString("rows %1 to %2").arg(count_text(rows.begin), count_text(rows.end - 1));
}

// ---- Lines --------------------------------------------------------------------------------------

Measure measure_of(const ShownRun& shown, Quantity quantity) {
  const Run& run = shown.run();
  switch (quantity) {
    case Quantity::entries:
      return {run.entries, 1};
    case Quantity::bytes:
      return {run.bytes, 1};
    case Quantity::mass:
      return {run.mass, 1};
    case Quantity::percent:
      break;
  }
  const double full = full_entries(*shown.result, run);
  return full > 0 ? Measure{run.entries, 1 / full} : Measure{};
}

Columns::Columns(Rows rows, int pixels)
    : rows_(rows), count_(static_cast<int>(std::min<RowIndex>(rows.size(), pixels))) {
  assert(count_ > 0);
  while (unit_ * kFold <= rows.size() / count_) unit_ *= kFold;
}

RowIndex Columns::edge(int column) const {
  if (column == 0) return rows_.begin;
  if (column == count_) return rows_.end;
  const RowIndex row = rows_.begin + rows_.size() * column / count_;
  return (row + unit_ / 2) / unit_ * unit_;
}

std::vector<QPointF> sample_line(const Measure& measure, const Columns& columns) {
  std::vector<QPointF> line;
  line.reserve(2 * static_cast<std::size_t>(columns.count()));
  for (int c = 0; c < columns.count(); ++c) {
    Rows rows = columns.at(c);
    rows.end = std::min(rows.end, measure.series->rows());
    if (rows.empty()) break;
    const Extremes found = measure.series->over(rows.begin, rows.end);
    if (std::isnan(found.high)) continue;
    const double low = found.low * measure.scale;
    const double high = found.high * measure.scale;
    const auto begin = static_cast<double>(rows.begin);
    const auto end = static_cast<double>(rows.end);
    if (rows.size() == 1) {
      line.emplace_back(begin, high);
      line.emplace_back(end, high);
      continue;
    }
    const double x = (begin + end) / 2;
    const bool down = !line.empty() && line.back().y() > (low + high) / 2;
    line.emplace_back(x, down ? high : low);
    if (low != high) line.emplace_back(x, down ? low : high);
  }
  return line;
}

namespace {

// Levels in memory, from the first fold on; rows are computed. Of more rows than a trace has, which
// only a file that is wrong claims, extremes are those of parts that are halved a few times.
class DifferenceSeries final : public Series {
 public:
  DifferenceSeries(Measure a, Measure b, const std::function<bool()>& cancelled)
      : a_(std::move(a)), b_(std::move(b)), rows_(std::min(a_.series->rows(), b_.series->rows())) {
    if (rows_ > kMostRows) return;
    std::vector<Extremes> level;
    for (RowIndex begin = 0; begin < rows_; begin += kFold) {
      if (begin % (kFold * kFold) == 0 && cancelled()) throw Interrupted();
      level.push_back(walk(begin, std::min(begin + kFold, rows_)));
    }
    while (level.size() > 1) {
      std::vector<Extremes> next((level.size() + kFold - 1) / kFold, {kNone, kNone});
      for (std::size_t i = 0; i < level.size(); ++i) take(next[i / kFold], level[i]);
      levels_.push_back(std::exchange(level, std::move(next)));
    }
    levels_.push_back(std::move(level));
  }

  [[nodiscard]] RowIndex rows() const override { return rows_; }
  [[nodiscard]] double at(RowIndex row) const override { return a_.at(row) - b_.at(row); }
  [[nodiscard]] Extremes over(RowIndex begin, RowIndex end) const override {
    assert(0 <= begin && begin < end && end <= rows_);
    if (rows_ > kMostRows) return halved(begin, end, kHalvings);
    // Single rows up to a multiple of 64 from both ends, then points of each level likewise.
    const RowIndex first = std::min(end, (begin + kFold - 1) / kFold * kFold);
    const RowIndex last = end == rows_ ? end : std::max(first, end / kFold * kFold);
    Extremes best = walk(begin, first);
    take(best, walk(last, end));
    RowIndex from = (first + kFold - 1) / kFold;
    RowIndex to = (last + kFold - 1) / kFold;
    for (const std::vector<Extremes>& level : levels_) {
      const auto size = static_cast<RowIndex>(level.size());
      const bool top = &level == &levels_.back();
      const auto add = [&](RowIndex i) { take(best, level[static_cast<std::size_t>(i)]); };
      for (; from < to && (top || from % kFold != 0); ++from) add(from);
      for (; from < to && to % kFold != 0 && to != size; --to) add(to - 1);
      if (from >= to) break;
      from /= kFold;
      to = (to + kFold - 1) / kFold;
    }
    return best;
  }
  [[nodiscard]] RowIndex row_of_high(RowIndex begin, RowIndex end) const override {
    const double high = over(begin, end).high;
    if (std::isnan(high)) return begin;
    while (end - begin > 1) {  // the first half that has it
      const RowIndex middle = begin + (end - begin) / 2;
      (over(begin, middle).high >= high ? end : begin) = middle;
    }
    return begin;
  }

 private:
  static constexpr RowIndex kMostRows = RowIndex{1} << 22;
  static constexpr int kHalvings = 6;

  // Exact where one of the two does not change in a part.
  [[nodiscard]] Extremes halved(RowIndex begin, RowIndex end, int times) const {
    const Extremes a = a_.series->over(begin, end);
    const Extremes b = b_.series->over(begin, end);
    if (a.low == a.high || b.low == b.high) {
      return {a.low * a_.scale - b.high * b_.scale, a.high * a_.scale - b.low * b_.scale};
    }
    if (times == 0 || end - begin == 1) return walk(begin, begin + 1);
    const RowIndex middle = begin + (end - begin) / 2;
    Extremes best = halved(begin, middle, times - 1);
    take(best, halved(middle, end, times - 1));
    return best;
  }
  static void take(Extremes& best, const Extremes& other) {
    if (!(best.low <= other.low) && !std::isnan(other.low)) best.low = other.low;
    if (!(best.high >= other.high) && !std::isnan(other.high)) best.high = other.high;
  }
  [[nodiscard]] Extremes walk(RowIndex begin, RowIndex end) const {
    Extremes best{kNone, kNone};
    for (RowIndex row = begin; row < end; ++row) take(best, {at(row), at(row)});
    return best;
  }

  Measure a_, b_;
  RowIndex rows_;
  std::vector<std::vector<Extremes>> levels_;  // [0]: of 64 rows each
};

}  // namespace

SeriesPtr series_of_difference(Measure a, Measure b, const std::function<bool()>& cancelled) {
  return std::make_shared<DifferenceSeries>(std::move(a), std::move(b), cancelled);
}

// ---- Numbers ------------------------------------------------------------------------------------

std::vector<QString> run_names(const std::vector<ShownRun>& runs) {
  const auto file = [](const Result& r) { return QString::fromStdString(r.path.stem().string()); };
  const auto chunk = [](const Result& r) {
    return r.chunk == 0 ? QString("whole prompt") : QString("chunk %1").arg(r.chunk);
  };
  const auto folder = [](const Result& r) {
    return QString::fromStdString(r.path.parent_path().string());
  };
  std::vector<QString> names;
  std::vector<QStringList> details(runs.size());
  for (const ShownRun& shown : runs) names.push_back(QString::fromStdString(label_of(shown.run())));
  for (const std::function<QString(const Result&)>& detail :
       std::initializer_list<std::function<QString(const Result&)>>{file, chunk, folder}) {
    std::map<QString, std::set<QString>> found;  // by name
    for (std::size_t r = 0; r < runs.size(); ++r) found[names[r]].insert(detail(*runs[r].result));
    for (std::size_t r = 0; r < runs.size(); ++r) {
      if (found[names[r]].size() > 1) details[r] += detail(*runs[r].result);
    }
    for (std::size_t r = 0; r < runs.size(); ++r) {
      names[r] = QString::fromStdString(label_of(runs[r].run()));
      if (!details[r].isEmpty()) names[r] += " (" + details[r].join(", ") + ")";
    }
  }
  return names;
}

std::vector<QString> run_names(const Document& document) { return run_names(document.runs()); }

namespace {

std::vector<RowIndex> csv_rows(Rows zoom, const SeriesPtr& lead) {
  std::vector<RowIndex> rows;
  if (zoom.empty()) return rows;
  const Columns columns(zoom, kCsvRows);
  for (int c = 0; c < columns.count(); ++c) {
    const Rows piece = columns.at(c);
    const RowIndex end = lead == nullptr ? 0 : std::min(piece.end, lead->rows());
    rows.push_back(piece.begin < end ? lead->row_of_high(piece.begin, end) : piece.begin);
  }
  return rows;
}

std::string field_at(const Measure& measure, RowIndex row) {
  const bool there = measure.series != nullptr && row < measure.series->rows();
  return csv_field(there ? measure.at(row) : kNone);
}

std::string text_field(const QString& text) {
  return csv_field(std::string_view(text.toStdString()));
}

}  // namespace

std::string memory_csv(const Document& document) {
  const ShownRun* current = document.current_run();
  if (current == nullptr) return csv_line({"row"});
  const Display& display = document.display();
  const Measure lead = measure_of(*current, display.quantity);
  const Stacking stacking(*current, display.quantity, display.stack);
  const bool stacked = display.stack != Stack::none && stacking.missing().isEmpty();
  std::vector<std::string> fields{"row"};
  std::vector<Measure> measures;
  if (stacked) {
    for (const QString& part : stacking.names()) fields.push_back(text_field(part));
  } else {
    const std::vector<QString> names = run_names(document);
    for (std::size_t r = 0; r < names.size(); ++r) {
      if (!document.runs()[r].visible) continue;
      fields.push_back(text_field(names[r]));
      measures.push_back(measure_of(document.runs()[r], display.quantity));
    }
  }
  std::string text = csv_line(fields);
  std::vector<double> parts(stacking.names().size());
  for (const RowIndex row : csv_rows(document.zoom(), lead.series)) {
    fields = {csv_field(row)};
    if (stacked) {
      if (row >= lead.series->rows()) break;
      stacking.parts_at(row, parts);
      for (const double part : parts) fields.push_back(csv_field(part));
    }
    for (const Measure& measure : measures) fields.push_back(field_at(measure, row));
    text += csv_line(fields);
  }
  return text;
}

std::string difference_csv(const Document& document) {
  std::string text = csv_line({"row", "baseline", "current", "difference"});
  if (document.current_run() == nullptr) return text;
  const Quantity quantity = document.display().quantity;
  const Measure current = measure_of(*document.current_run(), quantity);
  const Measure baseline = measure_of(*document.baseline_run(), quantity);
  if (current.series == nullptr || baseline.series == nullptr) return text;
  for (const RowIndex row : csv_rows(document.zoom(), current.series)) {
    if (row >= std::min(current.series->rows(), baseline.series->rows())) break;
    text += csv_line({csv_field(row), field_at(baseline, row), field_at(current, row),
                      csv_field(current.at(row) - baseline.at(row))});
  }
  return text;
}

}  // namespace kvspan::gui
