// SPDX-License-Identifier: Apache-2.0
#include "sim/optimum/frontier.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace kvspan::optimum {
namespace {

using Point = Frontier::Point;

// On the line through a and b.
double between(double x, double a_x, double b_x, double a_y, double b_y) {
  return b_x > a_x ? a_y + (x - a_x) / (b_x - a_x) * (b_y - a_y) : b_y;
}

}  // namespace

void Frontier::add(const Values& head) {
  struct Corner {
    double rows, gain;
  };
  std::vector<Corner> hull;
  own_ += to_share(head.own());
  for (int entry = 0; entry < head.entries(); ++entry) {
    const int born = head.born(entry);
    const auto first = static_cast<double>(head.rows_held(entry, born));
    own_rows_ += first;
    full_rows_ += static_cast<double>(head.rows_held(entry, head.passes() - 1));
    hull.assign(1, {0, 0});
    const std::span<const Mass> gains = head.gains(entry);
    for (std::size_t j = 1; j < gains.size(); ++j) {
      const Corner next{
          static_cast<double>(head.rows_held(entry, born + static_cast<int>(j))) - first,
          to_share(gains[j])};
      if (!(next.gain > hull.back().gain)) continue;
      while (hull.size() > 1) {
        const Corner& b = hull.back();
        const Corner& a = hull[hull.size() - 2];
        if ((b.gain - a.gain) * (next.rows - b.rows) > (next.gain - b.gain) * (b.rows - a.rows))
          break;
        hull.pop_back();
      }
      hull.push_back(next);
    }
    for (std::size_t i = 1; i < hull.size(); ++i) {
      const double rows = hull[i].rows - hull[i - 1].rows;
      edges_.push_back({(hull[i].gain - hull[i - 1].gain) / rows, rows});
    }
  }
}

void Frontier::add(const Frontier& other) {
  edges_.insert(edges_.end(), other.edges_.begin(), other.edges_.end());
  own_ += other.own_;
  own_rows_ += other.own_rows_;
  full_rows_ += other.full_rows_;
}

void Frontier::finish(int heads, std::int64_t rows) {
  std::sort(edges_.begin(), edges_.end(), [](const Edge& a, const Edge& b) {
    return std::pair(b.gain, a.rows) < std::pair(a.gain, b.rows);
  });
  const double all = static_cast<double>(heads) * static_cast<double>(rows);
  double held = own_rows_;
  double mass = own_;
  curve_.assign(1, {held / full_rows_, mass / all});
  for (const Edge& edge : edges_) {
    held += edge.rows;
    mass += edge.gain * edge.rows;
    curve_.push_back({held / full_rows_, mass / all});
  }
}

double Frontier::retained_at(double footprint) const {
  assert(!curve_.empty());
  const auto after = std::upper_bound(curve_.begin(), curve_.end(), footprint,
                                      [](double x, const Point& p) { return x < p.footprint; });
  if (after == curve_.begin()) return curve_.front().retained;
  if (after == curve_.end()) return curve_.back().retained;
  const Point& a = *std::prev(after);
  return between(footprint, a.footprint, after->footprint, a.retained, after->retained);
}

double Frontier::footprint_at(double retained) const {
  assert(!curve_.empty());
  const auto after = std::lower_bound(curve_.begin(), curve_.end(), retained,
                                      [](const Point& p, double y) { return p.retained < y; });
  if (after == curve_.begin()) return curve_.front().footprint;
  if (after == curve_.end()) return curve_.back().footprint;
  const Point& a = *std::prev(after);
  return between(retained, a.retained, after->retained, a.footprint, after->footprint);
}

std::vector<Point> Frontier::points(std::size_t most) const {
  const Point& first = curve_.front();
  const Point& last = curve_.back();
  const double width = std::max(last.footprint - first.footprint, 1e-12);
  const double height = std::max(last.retained - first.retained, 1e-12);
  std::vector<Point> out{first};
  double since = 0;
  for (std::size_t i = 1; i < curve_.size(); ++i) {
    since += (curve_[i].footprint - curve_[i - 1].footprint) / width +
             (curve_[i].retained - curve_[i - 1].retained) / height;
    if (since * static_cast<double>(most) < 2 && i + 1 < curve_.size()) continue;
    out.push_back(curve_[i]);
    since = 0;
  }
  return out;
}

}  // namespace kvspan::optimum
