// SPDX-License-Identifier: Apache-2.0
// What follows from points alone: critical point, front, ranks, bootstrap.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "sim/base/distribution.h"
#include "sim/base/random.h"
#include "sim/sweep/curves.h"

namespace kvspan::sweep {

Critical critical_point(std::vector<Point> points, double least) {
  using Kind = Critical::Kind;
  if (points.empty()) return {};
  // Of equal x the best quality counts, so it comes last.
  std::stable_sort(points.begin(), points.end(), [](const Point& a, const Point& b) {
    return a.x < b.x || (a.x == b.x && a.quality < b.quality);
  });
  std::vector<Point> line;
  for (const Point& point : points) {
    if (!line.empty() && line.back().x == point.x) line.pop_back();
    line.push_back(point);
  }
  if (line.back().quality < least) return {Kind::above, line.back().x};
  if (line.front().quality >= least) return {Kind::below, line.front().x};
  std::size_t i = 1;
  while (line[i].quality < least) ++i;
  const Point& a = line[i - 1];
  const Point& b = line[i];
  return {Kind::exact, a.x + (least - a.quality) / (b.quality - a.quality) * (b.x - a.x)};
}

std::vector<std::size_t> pareto_front(const std::vector<Point>& points) {
  std::vector<std::size_t> order(points.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return points[a].x < points[b].x ||
           (points[a].x == points[b].x && points[a].quality > points[b].quality);
  });
  std::vector<std::size_t> front;
  for (const std::size_t i : order) {
    const bool same = !front.empty() && points[front.back()].x == points[i].x &&
                      points[front.back()].quality == points[i].quality;
    if (front.empty() || same || points[i].quality > points[front.back()].quality)
      front.push_back(i);
  }
  return front;
}

Interval bootstrap_mean(const std::vector<double>& values, std::uint64_t seed, int draws) {
  const std::size_t n = values.size();
  std::vector<double> means;
  for (int b = 0; b < draws; ++b) {
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const double place =
          uniform(seed, {b, static_cast<std::int64_t>(i)}) * static_cast<double>(n);
      sum += values[std::min(n - 1, static_cast<std::size_t>(place))];
    }
    means.push_back(sum / static_cast<double>(n));
  }
  std::sort(means.begin(), means.end());
  return {nearest_rank(means, 0.025), nearest_rank(means, 0.975)};
}

std::vector<double> ranks_of(const std::vector<double>& values) {
  std::vector<double> ranks;
  for (const double value : values) {
    const auto smaller =
        std::count_if(values.begin(), values.end(), [&](double other) { return other < value; });
    const auto equal = std::count(values.begin(), values.end(), value);
    ranks.push_back(static_cast<double>(smaller) + (static_cast<double>(equal) + 1) / 2);
  }
  return ranks;
}

}  // namespace kvspan::sweep
