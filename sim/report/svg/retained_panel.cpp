// SPDX-License-Identifier: Apache-2.0
#include "sim/report/svg/retained_panel.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "sim/report/axes.h"
#include "sim/report/listing.h"

namespace kvspan::svg {
namespace {

constexpr std::string_view kBeyond = "#F1F0EC";  // what is out of reach

class RetainedPanel {
 public:
  RetainedPanel(Canvas& canvas, const std::vector<Series>& series, const Box& plot,
                const RetainedOptions& options)
      : canvas_(canvas), series_(series), plot_(plot), options_(options) {
    for (const Series& s : series) {
      const double footprint = 100 * s.run->metrics.footprint;
      if (!s.retained || !(footprint > 0)) continue;
      dots_.push_back({footprint, 100 * *s.retained, {&s}});
      if (s.run->fidelity->decode) rows_ = "decode rows";
    }
  }

  void draw() {
    draw_titles(canvas_, plot_, "Footprint against retained attention", "", "");
    if (dots_.empty()) {
      canvas_.text((plot_.left + plot_.right) / 2, (plot_.top + plot_.bottom) / 2, "middle", 12,
                   kFaint, "no fidelity was measured");
      draw_axes(canvas_, plot_);
      return;
    }
    scale();
    draw_titles(canvas_, plot_, "",
                log_ ? "KV footprint, % of the full cache's (log scale)"
                     : "KV footprint, % of the full cache's",
                "retained attention, mean % over " + rows_);
    beyond_reach();
    grid();
    frontier();
    draw_axes(canvas_, plot_);
    sweeps();
    merge();
    intervals();
    labels();  // leaders below the dots
    dots();
  }

 private:
  struct Dot {
    double footprint, retained;
    std::vector<const Series*> of;
  };

  void scale() {
    const auto [least, most] =
        std::minmax_element(dots_.begin(), dots_.end(),
                            [](const Dot& a, const Dot& b) { return a.footprint < b.footprint; });
    log_ = most->footprint / least->footprint > 8;
    right_ = log_ ? most->footprint * 1.15 : std::max(1.05 * most->footprint, 1e-6);
    left_ = log_ ? least->footprint / 1.15 : 0;
    if (log_ && !options_.frontier.empty())
      left_ = std::min(left_, 100 * options_.frontier.front().footprint / 1.15);
    const double worst = worst_shown();
    const double spread = std::max(100 - worst, 1.0);
    bottom_ = std::max(-0.02 * spread, std::min(worst, 100 - spread) - 0.1 * spread);
    top_ = 100 + 0.06 * spread;
  }

  // The lowest dot; with names not one that lies farther below the next than all others span: it
  // is put on the lower edge, and its label says where it is.
  [[nodiscard]] double worst_shown() const {
    std::vector<double> sorted;
    for (const Dot& dot : dots_) sorted.push_back(dot.retained);
    std::sort(sorted.begin(), sorted.end());
    const bool outlier =
        options_.names && sorted.size() > 3 && sorted[1] - sorted[0] > sorted.back() - sorted[1];
    return sorted[outlier ? 1 : 0];
  }
  [[nodiscard]] bool is_below(const Dot& dot) const { return dot.retained < bottom_; }

  [[nodiscard]] double x(double footprint) const {
    const double share = log_ ? std::log(footprint / left_) / std::log(right_ / left_)
                              : (footprint - left_) / (right_ - left_);
    return plot_.left + share * plot_.width();
  }
  [[nodiscard]] double y(double retained) const {
    const double share = (std::max(retained, bottom_) - bottom_) / (top_ - bottom_);
    return plot_.bottom - share * plot_.height();
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

  // The frontier as far as the plot shows it, from its lower left end.
  [[nodiscard]] std::vector<std::pair<double, double>> frontier_curve() const {
    std::vector<std::pair<double, double>> curve;
    for (const FrontierPoint& point : options_.frontier) {
      const double at_x = x(100 * point.footprint);
      const double at_y = y(100 * point.retained);
      if (100 * point.retained < bottom_ || at_x < plot_.left || at_x > plot_.right) continue;
      if (curve.empty()) curve.emplace_back(at_x, plot_.bottom);
      curve.emplace_back(at_x, at_y);
    }
    return curve;
  }

  // What no eviction policy reaches.
  void beyond_reach() {
    std::vector<std::pair<double, double>> corners = frontier_curve();
    if (corners.size() < 2) return;
    const double right = corners.back().first;
    corners.insert(corners.end(), {{right, plot_.top}, {plot_.left, plot_.top}});
    corners.emplace_back(plot_.left, plot_.bottom);
    canvas_.area(corners, kBeyond);
  }

  void frontier() {
    const std::vector<std::pair<double, double>> curve = frontier_curve();
    if (curve.size() < 2) return;
    canvas_.curve(curve, kInk, 2);
    for (std::size_t i = 1; i < curve.size(); ++i)
      along(curve[i - 1].first, curve[i - 1].second, curve[i].first, curve[i].second, 0);
    // Its name above it, where it is flat enough.
    const double end = plot_.left + 0.44 * plot_.width();
    const auto at = std::find_if(curve.begin(), curve.end() - 1,
                                 [&](const auto& point) { return point.first >= end; });
    std::string text = "the most that any eviction could retain";
    if (text_width(text, 12) > at->first - plot_.left - 8) text = "best eviction";
    const double baseline = std::max(at->second - 9, plot_.top + 14);
    canvas_.text(at->first, baseline, "end", 12, kInk, text, " font-style=\"italic\"");
    taken_.push_back(
        {at->first - text_width(text, 12), baseline - 12, at->first + 2, baseline + 4});
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
      canvas_.line(x(a.footprint), y(a.retained), x(b.footprint), y(b.retained),
                   b.of.front()->colour, 0.8);
      along(x(a.footprint), y(a.retained), x(b.footprint), y(b.retained), 8);
    }
  }

  // Small boxes along a line, without its ends, for labels to keep off.
  void along(double from_x, double from_y, double to_x, double to_y, double ends) {
    const double length = std::hypot(to_x - from_x, to_y - from_y);
    for (double at = ends; at < length - ends; at += 6) {
      lines_.push_back(around(from_x + (to_x - from_x) * at / length,
                              from_y + (to_y - from_y) * at / length, 2));
    }
  }

  // Dots that nobody could tell apart; where all are named, those that cover each other.
  void merge() {
    const double near = options_.names ? 6 : 2.5;
    std::vector<Dot> merged;
    for (Dot& dot : dots_) {
      const auto same = std::find_if(merged.begin(), merged.end(), [&](const Dot& other) {
        return std::hypot(x(other.footprint) - x(dot.footprint),
                          y(other.retained) - y(dot.retained)) < near &&
               other.of.front()->run->bound == dot.of.front()->run->bound;
      });
      if (same == merged.end())
        merged.push_back(std::move(dot));
      else
        same->of.push_back(dot.of.front());
    }
    dots_ = std::move(merged);
  }

  // What a score trace leaves open, above the dots, which are lower bounds.
  void intervals() {
    constexpr double kCap = 3;
    for (const Dot& dot : dots_) {
      const Series& s = *dot.of.front();
      const double at = x(dot.footprint);
      const double low = y(dot.retained);
      const double high = y(100 * s.retained_most.value_or(*s.retained));
      if (low - high < 1) continue;
      canvas_.line(at, low, at, high, s.colour, 1.2);
      canvas_.line(at - kCap, high, at + kCap, high, s.colour, 1.2);
      for (double on = high; on < low; on += 4) lines_.push_back(around(at, on, 2));
    }
  }

  void dots() {
    for (const Dot& dot : dots_) {
      const Series& s = *dot.of.front();
      if (s.run->bound)
        canvas_.dot(x(dot.footprint), y(dot.retained), 4.5, kPaper, s.colour, 2);
      else
        canvas_.dot(x(dot.footprint), y(dot.retained), 5, s.colour, kPaper, 1);
    }
  }

  // An arrow in the corner that every policy wants to reach, unless one is there already.
  void better() {
    const Box box{plot_.left + 8, plot_.top + 6, plot_.left + 76, plot_.top + 26};
    if (meets(taken_, box)) return;
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
    for (const Dot& dot : dots_) taken_.push_back(around(x(dot.footprint), y(dot.retained), 6));
    better();
    // From the top down, so that the leaders of a crowd fan out in its order.
    std::vector<const Dot*> order;
    for (const Dot& dot : dots_) order.push_back(&dot);
    std::stable_sort(order.begin(), order.end(),
                     [](const Dot* a, const Dot* b) { return a->retained > b->retained; });
    for (const Dot* dot : order) {
      std::string text;
      for (const Series* s : dot->of) {
        const bool many = series_.size() > kDirectLabels && !options_.names;
        text += (text.empty() ? "" : ", ") + (many ? s->number : brief_label(s->label));
      }
      if (is_below(*dot)) text += fmt::format(" \u2193 {:.1f} %", dot->retained);
      text = fitted(text, size, options_.names ? 330 : 200);
      const double at_x = x(dot->footprint);
      const double at_y = y(dot->retained);
      const std::optional<Box> box = nearest_place(at_x, at_y, text_width(text, size) + 2);
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

  // Whether a leader of the dot at (at_x, at_y) would run through a label or another dot, which it
  // would then seem to name.
  [[nodiscard]] bool misleads(double at_x, double at_y, const std::vector<Box>& leader) const {
    constexpr double kRadius = 5;
    return std::any_of(leader.begin(), leader.end(), [&](const Box& step) {
      return meets(labels_, step) || std::any_of(dots_.begin(), dots_.end(), [&](const Dot& dot) {
               const double dot_x = x(dot.footprint);
               const double dot_y = y(dot.retained);
               return (dot_x != at_x || dot_y != at_y) &&
                      around(dot_x, dot_y, kRadius).overlaps(step);
             });
    });
  }

  // The nearest place that is free; one on a line counts as somewhat farther away, and none has a
  // leader across another label or dot.
  [[nodiscard]] std::optional<Box> nearest_place(double at_x, double at_y, double width) const {
    constexpr double kHalf = 7;  // of the height
    constexpr double kOnLine = 20;
    constexpr std::array<std::pair<double, double>, 8> kDirections{
        {{1, 0}, {-1, 0}, {0, -1}, {0, 1}, {1, -1}, {-1, -1}, {1, 1}, {-1, 1}}};
    constexpr std::array kRadii{9.0, 16.0, 26.0, 38.0, 52.0, 70.0, 95.0, 125.0, 160.0, 200.0};
    std::vector<Box> places;
    for (const double radius : kRadii) {
      for (const auto& [dx, dy] : kDirections) {
        const double x = at_x + dx * (radius + width / 2);
        const double y = at_y + dy * (radius + 3) * (dx == 0 ? 1.0 : 0.7);
        places.push_back({x - width / 2, y - kHalf, x + width / 2, y + kHalf});
      }
    }
    const auto cost = [&](std::size_t i) -> std::optional<double> {
      if (misleads(at_x, at_y, leader_to(at_x, at_y, places[i]))) return std::nullopt;
      return kRadii[i / kDirections.size()] + (meets(lines_, places[i]) ? kOnLine : 0);
    };
    const std::optional<std::size_t> best = cheapest_place(plot_, places, taken_, cost);
    if (!best) return std::nullopt;
    return places[*best];
  }

  Canvas& canvas_;
  const std::vector<Series>& series_;
  Box plot_;
  RetainedOptions options_;
  std::vector<Dot> dots_;
  std::vector<Box> lines_;  // small boxes along the lines of sweeps and along leaders
  std::vector<Box> taken_;  // dots and labels
  std::vector<Box> labels_;
  std::string rows_ = "all rows";
  bool log_ = false;
  double left_ = 0, right_ = 100, bottom_ = 0, top_ = 100;
};

}  // namespace

void draw_retained(Canvas& canvas, const std::vector<Series>& series, const Box& plot,
                   const RetainedOptions& options) {
  RetainedPanel(canvas, series, plot, options).draw();
}

}  // namespace kvspan::svg
