// SPDX-License-Identifier: Apache-2.0
#include "sim/report/svg/memory_panel.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "sim/base/text.h"
#include "sim/report/axes.h"

namespace kvspan::svg {
namespace {

class MemoryPanel {
 public:
  MemoryPanel(Canvas& canvas, const RunReport& report, const std::vector<Series>& series,
              const Box& plot)
      : canvas_(canvas),
        series_(series),
        plot_(plot),
        rows_(make_row_axis(report.trace.tokens, report.trace.prompt_tokens,
                            static_cast<int>(plot.width()))) {
    for (const Series& s : series) {
      const auto& bytes = s.run->metrics.timeline.resident_bytes;
      if (!bytes.empty())
        top_ = std::max(top_, static_cast<double>(*std::max_element(bytes.begin(), bytes.end())));
      // A layerwise peak lies inside a pass, above every row.
      top_ = std::max(top_, static_cast<double>(s.run->metrics.peak_bytes.total));
    }
    top_ *= 1.06;
  }

  void draw() {
    draw_titles(canvas_, plot_, "Memory over time", "row (token position)",
                fmt::format("resident memory, {}", unit().name));
    byte_grid();
    row_grid();
    const std::size_t shared = series_.size() > 1 ? common_rows() : 0;
    if (shared > 1) {
      canvas_.curve(points(*series_.front().run, 0, shared), "#555555", 2.4);
      common_label(shared);
    }
    for (std::size_t i = 0; i < series_.size(); ++i) {
      // Later curves are thinner, so that one below shows at both sides of one on top of it.
      const double below = static_cast<double>(series_.size() - 1 - i);
      const double width = series_.size() > kColours ? 1.3 : 1.5 + 0.45 * below;
      canvas_.curve(points(*series_[i].run, shared > 1 ? shared - 1 : 0,
                           series_[i].run->metrics.timeline.resident_bytes.size()),
                    series_[i].colour, width,
                    series_[i].run->bound && series_[i].dash.empty() ? "3 3" : series_[i].dash);
    }
    draw_axes(canvas_, plot_);
    peaks();
  }

 private:
  [[nodiscard]] double x(double row) const { return plot_.left + rows_.position(row); }
  [[nodiscard]] double y(double bytes) const {
    return plot_.bottom - bytes / top_ * plot_.height();
  }
  [[nodiscard]] ByteUnit unit() const { return byte_unit(top_ / 1.06); }

  void byte_grid() {
    for (const Tick& tick : ticks(0, top_ / unit().bytes, 6)) {
      const double at = y(tick.value * unit().bytes);
      canvas_.line(plot_.left, at, plot_.right, at, kGrid, 1);
      canvas_.text(plot_.left - 8, at + 4, "end", 11, kInk, tick.label);
    }
  }

  void row_grid() {
    const auto n = static_cast<double>(rows_.prompt);
    const auto last = static_cast<double>(rows_.tokens);
    const double boundary = plot_.left + rows_.prefill_columns;
    std::vector<Box> taken;
    const auto label = [&](double at, double row) { row_label(at, row, taken); };
    label(plot_.left, 0);
    label(plot_.right, last);
    if (rows_.decode_columns > 0) {
      label(boundary, n);
      canvas_.line(boundary, plot_.top, boundary, plot_.bottom, kFaint, 1, "4 3");
      phase("prefill", "", plot_.left, boundary);
      phase("decode", rows_.wider(), boundary, plot_.right);
      for (const Tick& tick : ticks(n, last, std::max(1, rows_.decode_columns / 70)))
        label(plot_.left + rows_.position(tick.value), tick.value);
    }
    for (const Tick& tick : ticks(0, n, std::max(1, rows_.prefill_columns / 80)))
      label(plot_.left + tick.value / n * rows_.prefill_columns, tick.value);
  }

  // A number below the axis, unless it would touch one that is there.
  void row_label(double at, double row, std::vector<Box>& taken) {
    const std::string text = fmt::format("{:.0f}", row);
    const double half = text_width(text, 11) / 2 + 4;
    const Box box{at - half, 0, at + half, 1};
    if (meets(taken, box)) return;
    taken.push_back(box);
    canvas_.line(at, plot_.bottom, at, plot_.bottom + 4, kInk, 1);
    canvas_.text(at, plot_.bottom + 17, "middle", 11, kInk, text);
  }

  // The name of a phase above its rows, as much of it as there is room for.
  void phase(const std::string& name, const std::string& more, double left, double right) {
    std::string text = name + more;
    if (text_width(text, 11) > right - left) text = name;
    if (text_width(text, 11) > right - left) return;
    canvas_.text((left + right) / 2, plot_.top - 7, "middle", 11, kFaint, text);
  }

  // One point a row, or the smallest and the largest value of each pixel column, of the rows
  // [first, last).
  [[nodiscard]] std::vector<std::pair<double, double>> points(const RunResult& run,
                                                              std::size_t first,
                                                              std::size_t last) const {
    const auto& bytes = run.metrics.timeline.resident_bytes;
    std::vector<std::pair<double, double>> result;
    const int columns = rows_.prefill_columns + rows_.decode_columns;
    for (int column = 0; column < columns; ++column) {
      const auto [all_from, all_to] = rows_.rows(column);
      const auto from = std::max(all_from, static_cast<std::int64_t>(first));
      const auto to = std::min(all_to, static_cast<std::int64_t>(last));
      if (from >= to) continue;
      const auto [low, high] = std::minmax_element(bytes.begin() + from, bytes.begin() + to);
      const double left = plot_.left + column;
      const double least = y(static_cast<double>(*low));
      if (rows_are_wide(column)) {
        // A point in the middle of each row, and the ends of the phase, so that what leaves at the
        // prompt's end leaves on the boundary.
        const double middle = x(static_cast<double>(from));
        const int next = column + 1;
        if (column == 0 || column == rows_.prefill_columns) result.emplace_back(left, least);
        if (result.empty() || result.back().first < middle) result.emplace_back(middle, least);
        if (next == rows_.prefill_columns || next == columns)
          result.emplace_back(left + 0.9, least);
      } else if (*low == *high) {
        result.emplace_back(left + 0.5, least);
      } else {
        // As they follow each other in time.
        const double most = y(static_cast<double>(*high));
        result.emplace_back(left + 0.3, low < high ? least : most);
        result.emplace_back(left + 0.7, low < high ? most : least);
      }
    }
    return result;
  }

  // Whether a row of the column's phase is as wide as the column, or wider.
  [[nodiscard]] bool rows_are_wide(int column) const {
    return column >= rows_.prefill_columns ? rows_.tokens - rows_.prompt <= rows_.decode_columns
                                           : rows_.prompt <= rows_.prefill_columns;
  }

  // Leading rows in which no curve can be told from another.
  [[nodiscard]] std::size_t common_rows() const {
    const auto& first = series_.front().run->metrics.timeline.resident_bytes;
    std::size_t rows = first.size();
    for (const Series& s : series_) {
      const auto& bytes = s.run->metrics.timeline.resident_bytes;
      for (std::size_t row = 0; row < rows; ++row) {
        const double apart = static_cast<double>(bytes[row]) - static_cast<double>(first[row]);
        if (std::abs(apart) / top_ * plot_.height() > 0.6) rows = row;
      }
    }
    return rows;
  }

  void common_label(std::size_t shared) {
    const std::size_t middle = shared / 2;
    const double at_x = x(static_cast<double>(middle)) - 10;
    const double at_y =
        y(static_cast<double>(series_.front().run->metrics.timeline.resident_bytes[middle])) - 8;
    const std::string text =
        series_.size() == 2 ? "both runs" : fmt::format("all {} runs", series_.size());
    if (at_x - text_width(text, 11) < plot_.left) return;
    canvas_.text(at_x, at_y, "end", 11, kFaint, text, Canvas::kHalo);
  }

  struct Peak {
    double x, y;
    std::vector<const Series*> of;
  };

  // Peaks at one place are one.
  [[nodiscard]] std::vector<Peak> find_peaks() const {
    std::vector<Peak> found;
    for (const Series& s : series_) {
      const PeakBytes& peak = s.run->metrics.peak_bytes;
      const double at_x = x(static_cast<double>(peak.row));
      const double at_y = y(static_cast<double>(peak.total));
      const auto same = std::find_if(found.begin(), found.end(), [&](const Peak& other) {
        return std::abs(other.x - at_x) < 9 && std::abs(other.y - at_y) < 9;
      });
      if (same == found.end())
        found.push_back({at_x, at_y, {&s}});
      else
        same->of.push_back(&s);
    }
    return found;
  }

  // A dot at each run's peak; peaks at one place share a dark one that says so.
  void peaks() {
    std::vector<Box> taken;
    for (const Peak& peak : find_peaks()) {
      const bool several = peak.of.size() > 1;
      canvas_.dot(peak.x, peak.y, several ? 4.5 : 4, several ? kInk : peak.of.front()->colour,
                  kPaper, 1.2);
      if (!several) continue;
      std::string text = fmt::format("peak of {} runs", peak.of.size());
      if (series_.size() > kDirectLabels && peak.of.size() <= 6) {
        text = "peak of ";
        for (const Series* s : peak.of) text += (s == peak.of.front() ? "" : ", ") + s->number;
      }
      const double width = text_width(text, 11);
      const Box box{peak.x - 10 - width, peak.y - 16, peak.x - 10, peak.y - 4};
      if (box.left < plot_.left || meets(taken, box)) continue;
      taken.push_back(box);
      canvas_.text(box.right, box.bottom - 2, "end", 11, kInk, text, Canvas::kHalo);
    }
  }

  Canvas& canvas_;
  const std::vector<Series>& series_;
  Box plot_;
  RowAxis rows_;
  double top_ = 1;
};

}  // namespace

void draw_memory(Canvas& canvas, const RunReport& report, const std::vector<Series>& series,
                 const Box& plot) {
  MemoryPanel(canvas, report, series, plot).draw();
}

}  // namespace kvspan::svg
