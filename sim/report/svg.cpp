// SPDX-License-Identifier: Apache-2.0
#include "sim/report/svg.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "sim/base/build_info.h"
#include "sim/report/report.h"
#include "sim/report/terminal_chart.h"

namespace kvspan {

namespace {

// Okabe and Ito's colours, which the colour-blind can tell apart; grey instead of their yellow,
// which nobody can see on white.
constexpr std::array<std::string_view, 8> kColours{"#000000", "#E69F00", "#0072B2", "#009E73",
                                                   "#D55E00", "#CC79A7", "#56B4E9", "#8A8A8A"};
constexpr std::array<std::string_view, 6> kDashes{"",           "7 3",   "2.5 2.5",
                                                  "11 3 2.5 3", "4 1.5", "14 4"};
constexpr std::string_view kInk = "#222222";
constexpr std::string_view kFaint = "#666666";
constexpr std::string_view kGrid = "#E4E4E4";

constexpr double kWidth = 1240;
constexpr double kMargin = 28;
constexpr std::size_t kDirectLabels = 12;  // more runs are labelled by their number

struct Box {
  double left = 0, top = 0, right = 0, bottom = 0;
  [[nodiscard]] double width() const { return right - left; }
  [[nodiscard]] double height() const { return bottom - top; }
  [[nodiscard]] bool overlaps(const Box& other) const {
    return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
  }
  [[nodiscard]] bool contains(const Box& other) const {
    return left <= other.left && other.right <= right && top <= other.top && other.bottom <= bottom;
  }
};

// ---- Elements -----------------------------------------------------------------------------------

std::string escaped(std::string_view raw) {
  std::string result;
  for (const char c : one_line(raw)) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  // The two code points above the controls that XML forbids.
  for (const std::string_view bad : {"\uFFFE", "\uFFFF"}) {
    for (std::size_t at = 0; (at = result.find(bad, at)) != result.npos;) {
      result.replace(at, bad.size(), "\uFFFD");
    }
  }
  return result;
}

// Fonts differ: about the width in DejaVu Sans or Verdana, the widest that is likely to be used.
double text_width(std::string_view text, double size) {
  double em = 0;
  for (const char c : text) {
    const bool narrow = std::string_view("iljtfr.,:;()[]|'!I ").find(c) != std::string_view::npos;
    const bool wide = std::string_view("mwMWG%@=+").find(c) != std::string_view::npos;
    if ((static_cast<unsigned char>(c) & 0xC0U) == 0x80U) continue;  // inside a character
    em += static_cast<unsigned char>(c) >= 0x80 ? 1.0 : narrow ? 0.36 : wide ? 0.88 : 0.62;
  }
  return em * size;
}

// `text` shortened to `room` pixels.
std::string fitted(const std::string& text, double size, double room) {
  std::string result = text;
  for (int width = display_width(text); width > 4 && text_width(result, size) > room;) {
    result = shorten_middle(text, --width);
  }
  return result;
}

class Canvas {
 public:
  void line(double x1, double y1, double x2, double y2, std::string_view colour, double width,
            std::string_view dash = "") {
    add("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
        "stroke-width=\"{:.1f}\"{}/>\n",
        x1, y1, x2, y2, colour, width, dashed(dash));
  }
  void curve(const std::vector<std::pair<double, double>>& points, std::string_view colour,
             double width, std::string_view dash = "") {
    std::string text;
    for (const auto& [x, y] : points) text += fmt::format("{:.1f},{:.1f} ", x, y);
    if (text.empty()) return;
    text.pop_back();
    add("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{:.1f}\" "
        "stroke-linejoin=\"round\"{}/>\n",
        text, colour, width, dashed(dash));
  }
  void dot(double x, double y, double radius, std::string_view fill, std::string_view stroke,
           double width) {
    add("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.1f}\" fill=\"{}\" stroke=\"{}\" "
        "stroke-width=\"{:.1f}\"/>\n",
        x, y, radius, fill, stroke, width);
  }
  // anchor: start, middle or end. A halo keeps text readable on top of lines.
  void text(double x, double y, std::string_view anchor, double size, std::string_view colour,
            std::string_view content, std::string_view more = "") {
    add("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" font-size=\"{:.0f}\" "
        "fill=\"{}\"{}>{}</text>\n",
        x, y, anchor, size, colour, more, escaped(content));
  }
  [[nodiscard]] const std::string& str() const { return out_; }

  static constexpr std::string_view kHalo =
      " stroke=\"#FFFFFF\" stroke-width=\"3\" stroke-linejoin=\"round\" paint-order=\"stroke\"";
  static constexpr std::string_view kBold = " font-weight=\"bold\"";

 private:
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<Args>(args)...);
  }
  static std::string dashed(std::string_view dash) {
    return dash.empty() ? "" : fmt::format(" stroke-dasharray=\"{}\"", dash);
  }
  std::string out_;
};

// ---- What is drawn ------------------------------------------------------------------------------

struct Series {
  const RunResult* run = nullptr;
  std::string label;
  std::string number;  // in the legend, from 1
  std::size_t family = 0;
  std::string_view colour;
  std::string_view dash;
  std::optional<double> mass;  // of decode rows (or all), as a share
};

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

std::vector<Series> make_series(const RunReport& report) {
  std::vector<Series> all;
  std::vector<std::string> families;
  std::vector<std::size_t> members(kColours.size(), 0);
  for (const std::size_t r : display_order(report)) {
    Series series;
    series.run = &report.runs[r];
    series.label = label_of(*series.run);
    series.number = fmt::format("{}", all.size() + 1);
    const std::string family = family_of(*series.run);
    const auto known = std::find(families.begin(), families.end(), family);
    series.family = static_cast<std::size_t>(known - families.begin());
    if (known == families.end()) families.push_back(family);
    const bool many = report.runs.size() > kColours.size();
    const std::size_t colour = (many ? series.family : all.size()) % kColours.size();
    series.colour = kColours[colour];
    series.dash = kDashes[many ? members[colour]++ % kDashes.size() : 0];
    const PhaseFidelity* quality = quality_of(*series.run);
    if (quality != nullptr && std::isfinite(quality->mass_mean)) series.mass = quality->mass_mean;
    all.push_back(std::move(series));
  }
  return all;
}

void frame(Canvas& canvas, const Box& plot, const std::string& title, const std::string& x_title,
           const std::string& y_title) {
  canvas.text(plot.left, plot.top - 30, "start", 14, kInk, title, Canvas::kBold);
  canvas.text((plot.left + plot.right) / 2, plot.bottom + 42, "middle", 12, kInk, x_title);
  const double y = (plot.top + plot.bottom) / 2;
  const double x = plot.left - 56;
  canvas.text(x, y, "middle", 12, kInk, y_title,
              fmt::format(" transform=\"rotate(-90 {:.1f} {:.1f})\"", x, y));
}

void axes(Canvas& canvas, const Box& plot) {
  canvas.line(plot.left, plot.top, plot.left, plot.bottom, kInk, 1);
  canvas.line(plot.left, plot.bottom, plot.right, plot.bottom, kInk, 1);
}

// ---- Memory over rows ---------------------------------------------------------------------------

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
    frame(canvas_, plot_, "Memory over time", "row (token position)",
          fmt::format("resident memory, {}", unit().name));
    grid();
    const std::size_t shared = series_.size() > 1 ? common_rows() : 0;
    if (shared > 1) {
      canvas_.curve(points(*series_.front().run, 0, shared), "#555555", 2.4);
      common_label(shared);
    }
    for (std::size_t i = 0; i < series_.size(); ++i) {
      // Later curves are thinner, so that one below shows at both sides of one on top of it.
      const double below = static_cast<double>(series_.size() - 1 - i);
      const double width = series_.size() > kColours.size() ? 1.3 : 1.5 + 0.45 * below;
      canvas_.curve(points(*series_[i].run, shared > 1 ? shared - 1 : 0,
                           series_[i].run->metrics.timeline.resident_bytes.size()),
                    series_[i].colour, width,
                    series_[i].run->bound && series_[i].dash.empty() ? "3 3" : series_[i].dash);
    }
    axes(canvas_, plot_);
    peaks();
  }

 private:
  [[nodiscard]] double x(double row) const { return plot_.left + rows_.position(row); }
  [[nodiscard]] double y(double bytes) const {
    return plot_.bottom - bytes / top_ * plot_.height();
  }
  [[nodiscard]] ByteUnit unit() const { return byte_unit(top_ / 1.06); }

  void grid() {
    for (const Tick& tick : ticks(0, top_ / unit().bytes, 6)) {
      const double at = y(tick.value * unit().bytes);
      canvas_.line(plot_.left, at, plot_.right, at, kGrid, 1);
      canvas_.text(plot_.left - 8, at + 4, "end", 11, kInk, tick.label);
    }
    const auto n = static_cast<double>(rows_.prompt);
    const auto last = static_cast<double>(rows_.tokens);
    const double boundary = plot_.left + rows_.prefill_columns;
    std::vector<Box> taken;
    const auto label = [&](double at, double row) {
      const std::string text = fmt::format("{:.0f}", row);
      const double half = text_width(text, 11) / 2 + 4;
      const Box box{at - half, 0, at + half, 1};
      if (std::any_of(taken.begin(), taken.end(),
                      [&](const Box& other) { return box.overlaps(other); }))
        return;
      taken.push_back(box);
      canvas_.line(at, plot_.bottom, at, plot_.bottom + 4, kInk, 1);
      canvas_.text(at, plot_.bottom + 17, "middle", 11, kInk, text);
    };
    label(plot_.left, 0);
    label(plot_.right, last);
    if (rows_.decode_columns > 0) {
      label(boundary, n);
      canvas_.line(boundary, plot_.top, boundary, plot_.bottom, kFaint, 1, "4 3");
      phase("prefill", "", plot_.left, boundary);
      const double stretch = rows_.stretch();
      phase("decode",
            stretch > 1.05 ? fmt::format(" (rows {:.{}f}x wider)", stretch, stretch < 9.95 ? 1 : 0)
                           : "",
            boundary, plot_.right);
      for (const Tick& tick : ticks(n, last, std::max(1, rows_.decode_columns / 70)))
        label(plot_.left + rows_.position(tick.value), tick.value);
    }
    for (const Tick& tick : ticks(0, n, std::max(1, rows_.prefill_columns / 80)))
      label(plot_.left + tick.value / n * rows_.prefill_columns, tick.value);
  }

  // The name of a phase above its rows, as much of it as there is room for.
  void phase(const std::string& name, const std::string& more, double left, double right) {
    std::string text = name + more;
    if (text_width(text, 11) > right - left) text = name;
    if (text_width(text, 11) > right - left) return;
    canvas_.text((left + right) / 2, plot_.top - 7, "middle", 11, kFaint, text);
  }

  // One point a row, or the smallest and the largest value of each pixel column.
  [[nodiscard]] std::vector<std::pair<double, double>> points(const RunResult& run,
                                                              std::size_t first,
                                                              std::size_t last) const {
    const auto& bytes = run.metrics.timeline.resident_bytes;
    std::vector<std::pair<double, double>> result;
    for (int column = 0; column < rows_.prefill_columns + rows_.decode_columns; ++column) {
      const auto [all_from, all_to] = rows_.rows(column);
      const auto from = std::max(all_from, static_cast<std::int64_t>(first));
      const auto to = std::min(all_to, static_cast<std::int64_t>(last));
      if (from >= to) continue;
      const auto [low, high] = std::minmax_element(bytes.begin() + from, bytes.begin() + to);
      const double left = plot_.left + column;
      const bool decode = column >= rows_.prefill_columns;
      if (decode ? rows_.tokens - rows_.prompt <= rows_.decode_columns
                 : rows_.prompt <= rows_.prefill_columns) {
        // Rows wider than a column: a point in the middle of each, and the ends of the phase, so
        // that what leaves at the prompt's end leaves on the boundary.
        const double middle = x(static_cast<double>(from));
        const double height = y(static_cast<double>(*low));
        const int next = column + 1;
        if (column == 0 || column == rows_.prefill_columns) result.emplace_back(left, height);
        if (result.empty() || result.back().first < middle) result.emplace_back(middle, height);
        if (next == rows_.prefill_columns || next == rows_.prefill_columns + rows_.decode_columns) {
          result.emplace_back(left + 0.9, height);
        }
      } else if (*low == *high) {
        result.emplace_back(left + 0.5, y(static_cast<double>(*low)));
      } else {
        result.emplace_back(left + 0.3, y(static_cast<double>(*std::min(low, high))));
        result.emplace_back(left + 0.7, y(static_cast<double>(*std::max(low, high))));
      }
    }
    return result;
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

  // A dot at each run's peak; peaks at one place share a dark one that says so.
  void peaks() {
    struct Peak {
      double x, y;
      std::vector<const Series*> of;
    };
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
    std::vector<Box> taken;
    for (const Peak& peak : found) {
      const bool several = peak.of.size() > 1;
      canvas_.dot(peak.x, peak.y, several ? 4.5 : 4, several ? kInk : peak.of.front()->colour,
                  "#FFFFFF", 1.2);
      if (!several) continue;
      std::string text = fmt::format("peak of {} runs", peak.of.size());
      if (series_.size() > kDirectLabels && peak.of.size() <= 6) {
        text = "peak of ";
        for (const Series* s : peak.of) text += (s == peak.of.front() ? "" : ", ") + s->number;
      }
      const double width = text_width(text, 11);
      const Box box{peak.x - 10 - width, peak.y - 16, peak.x - 10, peak.y - 4};
      if (box.left < plot_.left ||
          std::any_of(taken.begin(), taken.end(), [&](const Box& b) { return b.overlaps(box); }))
        continue;
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

// ---- Footprint against mass ---------------------------------------------------------------------

class QualityPanel {
 public:
  QualityPanel(Canvas& canvas, const std::vector<Series>& series, const Box& plot)
      : canvas_(canvas), series_(series), plot_(plot) {
    for (const Series& s : series) {
      const double footprint = 100 * s.run->metrics.footprint;
      if (!s.mass || !(footprint > 0)) continue;
      dots_.push_back({footprint, 100 * *s.mass, {&s}});
      if (s.run->fidelity->decode) rows_ = "decode rows";
    }
  }

  void draw() {
    frame(canvas_, plot_, "Footprint against retained attention", "", "");
    if (dots_.empty()) {
      canvas_.text((plot_.left + plot_.right) / 2, (plot_.top + plot_.bottom) / 2, "middle", 12,
                   kFaint, "no fidelity was measured");
      axes(canvas_, plot_);
      return;
    }
    scale();
    frame(canvas_, plot_, "",
          log_ ? "KV footprint, % of the full cache's (log scale)"
               : "KV footprint, % of the full cache's",
          "retained attention, mean % over " + rows_);
    grid();
    axes(canvas_, plot_);
    sweeps();
    merge();
    labels();  // leaders below the dots
    dots();
  }

 private:
  struct Dot {
    double footprint, mass;
    std::vector<const Series*> of;
  };

  void scale() {
    const auto [least, most] =
        std::minmax_element(dots_.begin(), dots_.end(),
                            [](const Dot& a, const Dot& b) { return a.footprint < b.footprint; });
    const auto worst = std::min_element(dots_.begin(), dots_.end(),
                                        [](const Dot& a, const Dot& b) { return a.mass < b.mass; });
    log_ = most->footprint / least->footprint > 8;
    right_ = log_ ? most->footprint * 1.15 : std::max(1.05 * most->footprint, 1e-6);
    left_ = log_ ? least->footprint / 1.15 : 0;
    const double spread = std::max(100 - worst->mass, 1.0);
    bottom_ = std::max(-0.02 * spread, std::min(worst->mass, 100 - spread) - 0.1 * spread);
    top_ = 100 + 0.06 * spread;
  }

  [[nodiscard]] double x(double footprint) const {
    const double share = log_ ? std::log(footprint / left_) / std::log(right_ / left_)
                              : (footprint - left_) / (right_ - left_);
    return plot_.left + share * plot_.width();
  }
  [[nodiscard]] double y(double mass) const {
    return plot_.bottom - (mass - bottom_) / (top_ - bottom_) * plot_.height();
  }

  void grid() {
    std::vector<Tick> columns = ticks(left_, right_, 6);
    if (log_) {
      columns.clear();
      for (double power = 1e-4; power < 1000; power *= 10) {
        for (const double factor : {1.0, 2.0, 5.0})
          columns.push_back({factor * power, fmt::format("{:g}", factor * power)});
      }
    }
    for (const Tick& tick : columns) {
      if (tick.value < left_ || tick.value > right_) continue;
      canvas_.line(x(tick.value), plot_.top, x(tick.value), plot_.bottom, kGrid, 1);
      canvas_.text(x(tick.value), plot_.bottom + 17, "middle", 11, kInk, tick.label);
    }
    for (const Tick& tick : ticks(bottom_, 100, 6)) {
      canvas_.line(plot_.left, y(tick.value), plot_.right, y(tick.value), kGrid, 1);
      canvas_.text(plot_.left - 8, y(tick.value) + 4, "end", 11, kInk, tick.label);
    }
  }

  // Runs that differ only in numbers, in the order of their footprints.
  void sweeps() {
    std::vector<const Dot*> order;
    for (const Dot& dot : dots_) order.push_back(&dot);
    std::stable_sort(order.begin(), order.end(), [](const Dot* a, const Dot* b) {
      return std::pair(a->of.front()->family, a->footprint) <
             std::pair(b->of.front()->family, b->footprint);
    });
    for (std::size_t i = 1; i < order.size(); ++i) {
      const Dot& a = *order[i - 1];
      const Dot& b = *order[i];
      if (a.of.front()->family != b.of.front()->family) continue;
      canvas_.line(x(a.footprint), y(a.mass), x(b.footprint), y(b.mass), b.of.front()->colour, 0.8);
      const double length = std::hypot(x(b.footprint) - x(a.footprint), y(b.mass) - y(a.mass));
      for (double at = 8; at < length - 8; at += 6) {
        const double on_x = x(a.footprint) + (x(b.footprint) - x(a.footprint)) * at / length;
        const double on_y = y(a.mass) + (y(b.mass) - y(a.mass)) * at / length;
        lines_.push_back(around(on_x, on_y, 2));
      }
    }
  }

  void merge() {
    std::vector<Dot> merged;
    for (Dot& dot : dots_) {
      const auto same = std::find_if(merged.begin(), merged.end(), [&](const Dot& other) {
        return std::hypot(x(other.footprint) - x(dot.footprint), y(other.mass) - y(dot.mass)) <
                   2.5 &&
               other.of.front()->run->bound == dot.of.front()->run->bound;
      });
      if (same == merged.end())
        merged.push_back(std::move(dot));
      else
        same->of.push_back(dot.of.front());
    }
    dots_ = std::move(merged);
  }

  void dots() {
    for (const Dot& dot : dots_) {
      const Series& s = *dot.of.front();
      if (s.run->bound)
        canvas_.dot(x(dot.footprint), y(dot.mass), 4.5, "#FFFFFF", s.colour, 2);
      else
        canvas_.dot(x(dot.footprint), y(dot.mass), 5, s.colour, "#FFFFFF", 1);
    }
  }

  // An arrow in the corner that every policy wants to reach, unless one is there already.
  void better() {
    const Box box{plot_.left + 8, plot_.top + 6, plot_.left + 76, plot_.top + 26};
    if (std::any_of(taken_.begin(), taken_.end(), [&](const Box& b) { return b.overlaps(box); }))
      return;
    canvas_.line(box.left + 16, box.top + 16, box.left + 4, box.top + 4, kFaint, 1.2);
    canvas_.line(box.left + 4, box.top + 4, box.left + 11, box.top + 4, kFaint, 1.2);
    canvas_.line(box.left + 4, box.top + 4, box.left + 4, box.top + 11, kFaint, 1.2);
    canvas_.text(box.left + 22, box.top + 14, "start", 11, kFaint, "better");
    taken_.push_back(box);
  }

  // Labels go where nothing is yet, near places first: rings of eight places around the dot, the
  // wider ones with a leader. A label without a free place is left to the legend, which has them
  // all.
  void labels() {
    const double size = 11;
    for (const Dot& dot : dots_) taken_.push_back(around(x(dot.footprint), y(dot.mass), 6));
    better();
    // From the top down, so that the leaders of a crowd fan out in its order.
    std::vector<const Dot*> order;
    for (const Dot& dot : dots_) order.push_back(&dot);
    std::stable_sort(order.begin(), order.end(),
                     [](const Dot* a, const Dot* b) { return a->mass > b->mass; });
    for (const Dot* dot : order) {
      std::string text;
      for (const Series* s : dot->of) {
        const std::string& name = series_.size() > kDirectLabels ? s->number : s->label;
        text += (text.empty() ? "" : ", ") + name;
      }
      text = fitted(text, size, 200);
      const double at_x = x(dot->footprint);
      const double at_y = y(dot->mass);
      const std::optional<Box> box = free_place(at_x, at_y, text_width(text, size) + 2);
      if (!box) continue;
      const std::vector<Box> leader = leader_to(at_x, at_y, *box);
      if (!leader.empty()) {
        const Box& end = leader.back();
        canvas_.line(at_x, at_y, (end.left + end.right) / 2, (end.top + end.bottom) / 2, kFaint,
                     0.6);
        lines_.insert(lines_.end(), leader.begin(), leader.end());
      }
      canvas_.text((box->left + box->right) / 2, box->bottom - 3, "middle", size, kInk, text,
                   Canvas::kHalo);
      taken_.push_back(*box);
      labels_.push_back(*box);
    }
  }

  static Box around(double x, double y, double half) {
    return {x - half, y - half, x + half, y + half};
  }

  // Small boxes from a dot to its label, none if the label is near enough without a leader.
  static std::vector<Box> leader_to(double from_x, double from_y, const Box& label) {
    const double to_x = std::clamp(from_x, label.left, label.right);
    const double to_y = std::clamp(from_y, label.top + 2, label.bottom - 2);
    const double length = std::hypot(to_x - from_x, to_y - from_y);
    std::vector<Box> boxes;
    if (length <= 16) return boxes;
    for (double at = 8; at < length; at += 4) {
      boxes.push_back(around(from_x + (to_x - from_x) * at / length,
                             from_y + (to_y - from_y) * at / length, 1));
    }
    boxes.push_back(around(to_x, to_y, 1));
    return boxes;
  }

  // The nearest place that is free; one on a line counts as somewhat farther away.
  [[nodiscard]] std::optional<Box> free_place(double at_x, double at_y, double width) const {
    constexpr double kHalf = 7;  // of the height
    constexpr double kOnLine = 20;
    constexpr std::array<std::pair<double, double>, 8> kDirections{
        {{1, 0}, {-1, 0}, {0, -1}, {0, 1}, {1, -1}, {-1, -1}, {1, 1}, {-1, 1}}};
    const auto meets = [](const std::vector<Box>& boxes, const Box& box) {
      return std::any_of(boxes.begin(), boxes.end(), [&](const Box& b) { return b.overlaps(box); });
    };
    std::optional<Box> best;
    double least = 0;
    for (const double radius : {9.0, 16.0, 26.0, 38.0, 52.0, 70.0, 95.0, 125.0}) {
      for (const auto& [dx, dy] : kDirections) {
        const double x = at_x + dx * (radius + width / 2);
        const double y = at_y + dy * (radius + 3) * (dx == 0 ? 1.0 : 0.7);
        const Box box{x - width / 2, y - kHalf, x + width / 2, y + kHalf};
        if (!plot_.contains(box) || meets(taken_, box)) continue;
        const std::vector<Box> leader = leader_to(at_x, at_y, box);
        const auto crosses = [&](const Box& b) { return meets(labels_, b); };
        if (std::any_of(leader.begin(), leader.end(), crosses)) continue;
        const double cost = radius + (meets(lines_, box) ? kOnLine : 0);
        if (best && cost >= least) continue;
        best = box;
        least = cost;
      }
    }
    return best;
  }

  Canvas& canvas_;
  const std::vector<Series>& series_;
  Box plot_;
  std::vector<Dot> dots_;
  std::vector<Box> lines_;  // small boxes along the lines of sweeps and along leaders
  std::vector<Box> taken_;  // dots and labels
  std::vector<Box> labels_;
  std::string rows_ = "all rows";
  bool log_ = false;
  double left_ = 0, right_ = 100, bottom_ = 0, top_ = 100;
};

// ---- Legend -------------------------------------------------------------------------------------

constexpr double kLegendLine = 18;

// Returns where it ends.
double draw_legend(Canvas& canvas, const std::vector<Series>& series, double top) {
  constexpr double kColumnGap = 36;
  const std::size_t columns = series.size() > 6 ? 2 : 1;
  const std::size_t lines = (series.size() + columns - 1) / columns;
  const double width = (kWidth - 2 * kMargin - kColumnGap) / 2;
  const double size = 11;
  const bool numbered = series.size() > kDirectLabels;
  const double text_left = numbered ? 64 : 44;
  for (std::size_t c = 0; c < columns; ++c) {
    const double left = kMargin + static_cast<double>(c) * (width + kColumnGap);
    const double right = left + width;
    canvas.text(left + text_left, top, "start", size, kFaint, "policy");
    canvas.text(right - 156, top, "end", size, kFaint, "peak memory");
    canvas.text(right - 82, top, "end", size, kFaint, "footprint %");
    canvas.text(right, top, "end", size, kFaint, "retained %");
    canvas.line(left, top + 6, right, top + 6, kGrid, 1);
    for (std::size_t i = c * lines; i < std::min(series.size(), (c + 1) * lines); ++i) {
      const Series& s = series[i];
      const double y = top + 6 + kLegendLine * static_cast<double>(i - c * lines + 1);
      const bool bound = s.run->bound;
      canvas.line(left, y - 4, left + 34, y - 4, s.colour, 2,
                  bound && s.dash.empty() ? "3 3" : s.dash);
      canvas.dot(left + 17, y - 4, 3.5, bound ? "#FFFFFF" : s.colour, bound ? s.colour : "#FFFFFF",
                 bound ? 1.6 : 0.8);
      if (numbered) canvas.text(left + 58, y, "end", size, kFaint, s.number);
      canvas.text(left + text_left, y, "start", size, kInk,
                  fitted(s.label + (bound ? " (bound)" : ""), size, width - text_left - 230));
      canvas.text(right - 156, y, "end", size, kInk, human_bytes(s.run->metrics.peak_bytes.total));
      canvas.text(right - 82, y, "end", size, kInk,
                  fmt::format("{:.1f}", 100 * s.run->metrics.footprint));
      canvas.text(right, y, "end", size, kInk, s.mass ? fmt::format("{:.2f}", 100 * *s.mass) : "-");
    }
  }
  return top + 6 + kLegendLine * static_cast<double>(lines);
}

}  // namespace

std::string memory_svg(const RunReport& report) {
  const TraceMeta& trace = report.trace;
  const std::vector<Series> series = make_series(report);
  const Box memory{kMargin + 64, 132, 730, 482};
  const Box quality{830, 132, kWidth - kMargin, 482};

  Canvas canvas;
  canvas.text(
      kMargin, 36, "start", 18, kInk,
      fmt::format("KV memory of {} {}{}{}", series.size(), series.size() == 1 ? "run" : "runs",
                  trace.model.empty() ? "" : " on ", fitted(trace.model, 18, 700)),
      Canvas::kBold);
  std::string what = fmt::format(
      "{}: {} tokens = {} prompt + {} generated, {}", fitted(report.trace_path, 12, 420),
      trace.tokens, trace.prompt_tokens, trace.tokens - trace.prompt_tokens,
      report.chunk == 0 ? "one prefill pass" : fmt::format("chunks of {}", report.chunk));
  what +=
      fmt::format("; {} bytes per KV element, layout {}, prefill {}", report.accounting.kv_bytes,
                  report.accounting.layout, report.accounting.layerwise ? "layerwise" : "whole");
  if (const std::string subset = layer_subset(trace); !subset.empty()) what += "; " + subset;
  canvas.text(kMargin, 58, "start", 12, kFaint, fitted(what, 12, kWidth - 2 * kMargin));

  double end = memory.bottom + 76;
  if (!series.empty() && trace.tokens > 0) {
    MemoryPanel(canvas, report, series, memory).draw();
    QualityPanel(canvas, series, quality).draw();
    end = draw_legend(canvas, series, end);
  }
  canvas.text(kMargin, end + 30, "start", 11, kFaint,
              "dots on the left: peaks; hollow on the right: bounds, which read the future; "
              "retained attention is a proxy, "
              "not accuracy");
  canvas.text(kWidth - kMargin, end + 30, "end", 11, kFaint,
              fmt::format("kvspan {}", build_info().version));

  const double height = end + 46;
  return fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
      "viewBox=\"0 0 {0:.0f} {1:.0f}\" font-family=\"DejaVu Sans, Verdana, Arial, sans-serif\">\n"
      "<title>{2}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#FFFFFF\"/>\n{3}</svg>\n",
      kWidth, height, escaped("kvspan: memory over time, and footprint against retained attention"),
      canvas.str());
}

}  // namespace kvspan
