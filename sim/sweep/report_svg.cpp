// SPDX-License-Identifier: Apache-2.0
// A sweep's picture: footprint against retained attention, a panel a trace and group.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "sim/base/text.h"
#include "sim/report/axes.h"
#include "sim/report/svg/canvas.h"
#include "sim/report/svg/series.h"
#include "sim/sweep/report_forms.h"

namespace kvspan::sweep {
namespace {

using Kind = Critical::Kind;

constexpr std::size_t kMostPanels = 12;
constexpr std::size_t kFeatured = svg::kColours - 1;  // its last colour is the grey of the others
constexpr double kPanelWidth = 560, kPanelHeight = 300;
constexpr double kLeft = 84, kTop = 110, kGapX = 96, kGapY = 118;
constexpr std::string_view kOthers = "#C6C6C6";

using Line = std::vector<std::pair<double, double>>;

bool crosses(const Curve& curve) {
  return curve.footprint.kind == Kind::exact || curve.footprint.kind == Kind::below;
}

struct Featured {
  std::string method;
  std::string label;  // with the methods whose curves are the same
};

// All points of a method, as a text.
std::string curves_of(const SweepReport& report, const std::string& method) {
  std::string text;
  for (const Curve& curve : report.curves) {
    if (curve.method != method) continue;
    text += fmt::format("{} {}:", curve.trace, curve.group);
    for (const CurvePoint& p : curve.points)
      text += fmt::format(" {:.6f} {:.6f}", p.footprint, p.retained);
  }
  return text;
}

// The methods with the best mean place over the panels, best first.
std::vector<Featured> featured_methods(const SweepReport& report) {
  std::map<std::pair<std::size_t, std::size_t>, std::vector<const Curve*>> panels;
  for (const Curve& curve : report.curves) {
    if (!curve.bound) panels[{curve.trace, curve.group}].push_back(&curve);
  }
  std::map<std::string, std::pair<double, std::size_t>> places;  // sum, panels
  for (const auto& [panel, curves] : panels) {
    std::vector<double> values;
    for (const Curve* curve : curves) {
      values.push_back(crosses(*curve) ? curve->footprint.x
                                       : std::numeric_limits<double>::infinity());
    }
    const std::vector<double> ranks = ranks_of(values);
    for (std::size_t i = 0; i < curves.size(); ++i) {
      places[curves[i]->method].first += ranks[i];
      ++places[curves[i]->method].second;
    }
  }
  std::vector<std::pair<double, std::string>> order;
  for (const auto& [method, place] : places) {
    if (place.second == panels.size())
      order.emplace_back(place.first / static_cast<double>(place.second), method);
  }
  std::sort(order.begin(), order.end());
  std::vector<Featured> out;
  std::map<std::string, std::size_t> known;
  for (const auto& [place, method] : order) {
    const auto [at, fresh] = known.try_emplace(curves_of(report, method), out.size());
    const std::string label = labelled(method, false, is_stand_in(report.curves, method));
    if (!fresh)
      out[at->second].label += ", " + label;
    else if (out.size() < kFeatured)
      out.push_back({method, label});
    else
      known.erase(at);
  }
  return out;
}

class Panel {
 public:
  Panel(svg::Canvas& canvas, const SweepReport& report, const std::vector<Featured>& featured,
        const Box& plot, std::string_view axis)
      : canvas_(canvas), report_(report), featured_(featured), plot_(plot), axis_(axis) {}

  void draw(const std::vector<const Curve*>& curves, const std::string& title) {
    scale(curves);
    svg::draw_titles(canvas_, plot_, "", "KV footprint, % of the full cache's", axis_);
    canvas_.text(plot_.left, plot_.top - 12, "start", 13, svg::kInk,
                 svg::fitted(title, 13, plot_.width()), svg::Canvas::kBold);
    grid();
    for (const Curve* curve : curves) {
      if (place_of(*curve) == featured_.size()) one(*curve, kOthers, 1);
    }
    // Better ones on top.
    for (std::size_t place = featured_.size(); place-- > 0;) {
      for (const Curve* curve : curves) {
        if (place_of(*curve) == place) one(*curve, svg::kPalette[place], 2);
      }
    }
    least();
    for (const Curve* curve : curves) mark(*curve);
    svg::draw_axes(canvas_, plot_);
  }

 private:
  [[nodiscard]] std::size_t place_of(const Curve& curve) const {
    const auto at = std::find_if(featured_.begin(), featured_.end(),
                                 [&](const Featured& f) { return f.method == curve.method; });
    return static_cast<std::size_t>(at - featured_.begin());
  }

  // The upper part, where decisions are taken; what lies lower leaves through the bottom.
  void scale(const std::vector<const Curve*>& curves) {
    constexpr double kBelowLeast = 35;
    double lowest = 100;
    for (const Curve* curve : curves) {
      for (const CurvePoint& p : curve->points) {
        lowest = std::min(lowest, 100 * p.retained);
        top_ = std::max(top_, 100 * p.retained + 1);
        right_ = std::max(right_, 103 * p.footprint);
      }
    }
    bottom_ = std::max({0.0, lowest - 2, 100 * report_.options.least - kBelowLeast});
    bottom_ = std::min(bottom_, 100 * report_.options.least - 2);
  }
  [[nodiscard]] double x(double footprint) const {
    return plot_.left + 100 * footprint / right_ * plot_.width();
  }
  [[nodiscard]] double y(double retained) const {
    return plot_.bottom - (100 * retained - bottom_) / (top_ - bottom_) * plot_.height();
  }

  void grid() {
    for (const Tick& tick : ticks(0, right_, 8)) {
      canvas_.line(x(tick.value / 100), plot_.top, x(tick.value / 100), plot_.bottom, svg::kGrid,
                   1);
      canvas_.text(x(tick.value / 100), plot_.bottom + 17, "middle", 11, svg::kInk, tick.label);
    }
    for (const Tick& tick : ticks(bottom_, top_ - 1, 6)) {
      canvas_.line(plot_.left, y(tick.value / 100), plot_.right, y(tick.value / 100), svg::kGrid,
                   1);
      canvas_.text(plot_.left - 8, y(tick.value / 100) + 4, "end", 11, svg::kInk, tick.label);
    }
  }

  void least() {
    const double at = y(report_.options.least);
    canvas_.line(plot_.left, at, plot_.right, at, svg::kInk, 1, "6 4");
    canvas_.text(plot_.left + 6, at - 5, "start", 11, svg::kInk,
                 fmt::format("{:g} %", 100 * report_.options.least), svg::Canvas::kHalo);
  }

  // The parts of a curve that lie in the plot.
  void one(const Curve& curve, std::string_view colour, double width) {
    Line line;
    const double end = plot_.bottom;
    const auto flush = [&] {
      if (line.size() > 1) canvas_.curve(line, colour, width, curve.bound ? "3 3" : "");
      line.clear();
    };
    for (std::size_t i = 0; i < curve.points.size(); ++i) {
      const double to_x = x(curve.points[i].footprint), to_y = y(curve.points[i].retained);
      if (i > 0) {
        const double from_x = x(curve.points[i - 1].footprint);
        const double from_y = y(curve.points[i - 1].retained);
        if ((from_y > end) != (to_y > end)) {
          line.emplace_back(from_x + (end - from_y) / (to_y - from_y) * (to_x - from_x), end);
          if (to_y > end) flush();
        }
      }
      if (to_y > end) continue;
      line.emplace_back(to_x, to_y);
      canvas_.dot(to_x, to_y, width + 0.6, curve.bound ? svg::kPaper : colour,
                  curve.bound ? colour : svg::kPaper, curve.bound ? 1 : 0.5);
    }
    flush();
  }

  // A ring where a featured method reaches the line.
  void mark(const Curve& curve) {
    const std::size_t place = place_of(curve);
    if (place == featured_.size() || curve.footprint.kind != Kind::exact) return;
    canvas_.dot(x(curve.footprint.x), y(report_.options.least), 5, svg::kPaper,
                svg::kPalette[place], 2);
  }

  svg::Canvas& canvas_;
  const SweepReport& report_;
  const std::vector<Featured>& featured_;
  Box plot_;
  std::string axis_;
  double right_ = 1, bottom_ = 0, top_ = 101;
};

// The featured methods with their critical footprint in every panel. Returns where it ends.
double draw_key(svg::Canvas& canvas, const SweepReport& report, const std::vector<Front>& panels,
                const std::vector<Featured>& featured, double top, double width) {
  constexpr double kRow = 19, kSize = 12, kColumn = 86;
  const double numbers = width - 28 - kColumn * static_cast<double>(panels.size() - 1);
  canvas.text(kLeft + 44, top, "start", 11, svg::kFaint, "smallest critical footprints");
  for (std::size_t p = 0; p < panels.size(); ++p) {
    canvas.text(numbers + kColumn * static_cast<double>(p), top, "end", 11, svg::kFaint,
                fmt::format("in ({})", p + 1));
  }
  double at = top;
  for (std::size_t i = 0; i < featured.size(); ++i) {
    at += kRow;
    canvas.line(kLeft, at - 4, kLeft + 34, at - 4, svg::kPalette[i], 2);
    canvas.dot(kLeft + 17, at - 4, 3.5, svg::kPalette[i], svg::kPaper, 0.8);
    canvas.text(kLeft + 44, at, "start", kSize, svg::kInk,
                svg::fitted(featured[i].label, kSize, numbers - kColumn - kLeft - 60));
    for (std::size_t p = 0; p < panels.size(); ++p) {
      for (const Curve& curve : report.curves) {
        if (curve.trace != panels[p].trace || curve.group != panels[p].group ||
            curve.method != featured[i].method)
          continue;
        canvas.text(numbers + kColumn * static_cast<double>(p), at, "end", kSize, svg::kInk,
                    share_text(curve.footprint));
      }
    }
  }
  at += kRow;
  canvas.line(kLeft, at - 4, kLeft + 34, at - 4, kOthers, 1.4);
  canvas.text(kLeft + 44, at, "start", kSize, svg::kInk, "all others; dashed: bounds");
  return at;
}

}  // namespace

std::string to_svg(const SweepReport& report, const Plan& plan, const PictureWords& words) {
  const std::vector<Featured> featured = featured_methods(report);
  std::vector<Front> panels(report.fronts.begin(),
                            report.fronts.begin() + static_cast<std::ptrdiff_t>(std::min(
                                                        kMostPanels, report.fronts.size())));
  const std::size_t columns = panels.size() > 1 ? 2 : 1;
  const double width = kLeft + static_cast<double>(columns) * (kPanelWidth + kGapX) - kGapX + 28;
  svg::Canvas canvas;
  canvas.text(28, 36, "start", 18, svg::kInk,
              fmt::format("How small a KV cache keeps {:g} % of {}", 100 * report.options.least,
                          words.kept),
              svg::Canvas::kBold);
  canvas.text(
      28, 58, "start", 12, svg::kFaint,
      fmt::format("a line a method, a dot a budget, a ring where it reaches the line; {}{}",
                  words.note,
                  panels.size() < report.fronts.size()
                      ? fmt::format("; {} of {} panels", panels.size(), report.fronts.size())
                      : ""));
  double bottom = kTop;
  for (std::size_t p = 0; p < panels.size(); ++p) {
    const double left = kLeft + static_cast<double>(p % columns) * (kPanelWidth + kGapX);
    const std::size_t line = p / columns;
    const double top = kTop + static_cast<double>(line) * (kPanelHeight + kGapY);
    std::vector<const Curve*> curves;
    for (const Curve& curve : report.curves) {
      if (curve.trace == panels[p].trace && curve.group == panels[p].group)
        curves.push_back(&curve);
    }
    const std::string name = one_line(plan.traces[panels[p].trace].path);
    Panel(canvas, report, featured, {left, top, left + kPanelWidth, top + kPanelHeight}, words.axis)
        .draw(curves, fmt::format("({}) {}: {}", p + 1, name.substr(name.rfind('/') + 1),
                                  text_of(report.groups[panels[p].group])));
    bottom = top + kPanelHeight;
  }
  if (!panels.empty()) bottom = draw_key(canvas, report, panels, featured, bottom + 84, width);
  return svg::document(canvas, width, bottom + 28, words.document);
}

}  // namespace kvspan::sweep
