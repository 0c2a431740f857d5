// SPDX-License-Identifier: Apache-2.0
// What people run a sweep for: how far each method can shrink the cache, on each trace, before less
// than a share F of attention is left; who is on the front; who is best over the traces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "sim/sweep/records.h"

namespace kvspan::sweep {

// ---- Points -------------------------------------------------------------------------------------

struct Point {
  double x = 0;        // footprint, or peak
  double quality = 0;  // as a share of the full cache's
};

// The smallest x that keeps a quality of F.
struct Critical {
  enum class Kind : std::uint8_t { unknown, exact, below, above };
  Kind kind = Kind::unknown;  // below: less than x; above: more than x
  double x = 0;
};
// Points are sorted by x. unknown: there are none. above the largest x: its point is below F.
// below the smallest x: its point is not. Else the crossing with the smallest x, between a point
// below F and the next one which is not, by linear interpolation.
// Source: arXiv 2506.17121, section 2.1 and table 2.
[[nodiscard]] Critical critical_point(std::vector<Point> points, double least);

// Indices of the points that no other one beats: none has an x as small and a quality as high, one
// of them strictly. By x.
[[nodiscard]] std::vector<std::size_t> pareto_front(const std::vector<Point>& points);

struct Interval {
  double low = 0, high = 0;
};
// Of the mean of `values` that are drawn with replacement, as many as there are: the 2.5th and
// 97.5th percentile (nearest rank) of `draws` means. Draw b takes values
// [floor(uniform(seed, {b, i}) * n)], i = 0 .. n - 1. REQUIRES: at least one value and draw.
[[nodiscard]] Interval bootstrap_mean(const std::vector<double>& values, std::uint64_t seed,
                                      int draws);

// Ranks from 1, the smallest first; equal ones share the mean of their places.
[[nodiscard]] std::vector<double> ranks_of(const std::vector<double>& values);

// ---- Curves -------------------------------------------------------------------------------------

struct CurvePoint {
  std::uint64_t cell = 0;
  std::string budget;  // as text; empty: the method has none
  double footprint = 0, peak_kv = 0;
  std::int64_t peak_bytes = 0;
  double retained = 0;
  std::optional<double> retained_upper;  // of a score trace, where `retained` is a lower bound
  std::optional<Interval> estimate;      // 95 %, where `retained` is estimated from a sample
  // Of a sweep with regrets: retained attention that the best eviction has more at the cell's
  // occupancy; the smallest footprint at which eviction could retain as much as the cell.
  std::optional<double> regret, optimum_footprint;
};

// A method on one trace: all its budgets.
struct Curve {
  std::size_t trace = 0;  // in the plan
  std::size_t group = 0;  // in SweepReport::groups
  std::string method;
  bool bound = false;
  bool stand_in = false;           // a cell's notes say so: learned parts are not the authors'
  std::vector<CurvePoint> points;  // by footprint
  Critical footprint, peak_kv, peak_bytes;
  // On a score trace from the upper bounds: the true critical footprint is not smaller.
  std::optional<Critical> footprint_low;
  // From the ends of the intervals of estimates: the least and the most that it may be.
  std::optional<std::pair<Critical, Critical>> footprint_interval;
  // The same of the best eviction at the method's own pass ends; nullopt: without regrets.
  std::optional<Critical> optimum;
  std::optional<Interval> regret;  // the least and the most of its points
};

// Settings that are compared with each other, over all traces.
struct Group {
  RowIndex prompt = 0;
  std::string evict_at;
  RowIndex chunk = 0;
  std::int64_t kv_bytes = 2;
  std::uint64_t seed = 0;
  std::string prefill, layout;
  bool operator==(const Group&) const = default;
};
// "chunk 512, prompt 512, ...": what differs from one pass and the defaults.
[[nodiscard]] std::string text_of(const Group& group);

// "lookahead (bound)", "judgeq (stand-in)"
[[nodiscard]] std::string labelled(const std::string& method, bool bound, bool stand_in);
// Whether any curve of the method is one.
[[nodiscard]] bool is_stand_in(const std::vector<Curve>& curves, const std::string& method);

// One method over the traces of a group, among those that ran on all of them and are no bounds.
struct Ranked {
  std::size_t group = 0;
  std::string method;
  std::size_t traces = 0;
  double mean_rank = 0;                   // by critical footprint; "more than x" is last
  std::optional<Interval> rank_interval;  // two traces and more
  std::optional<double> mean_critical;    // if none is "more than x"; "less than x" counts as x
  std::optional<Interval> critical_interval;
};

// A critical point as a number that sorts: "less than x" is x, "more than x" is infinite.
[[nodiscard]] double order_of(const Critical& critical);

struct Front {
  std::size_t trace = 0, group = 0;
  std::vector<std::uint64_t> cells;  // by footprint; bounds take no part
};

struct ReportOptions {
  double least = 0.9;  // F
  int draws = 2000;
  std::uint64_t seed = 0;
};

// Methods by their place on traces that all of them ran on, best mean first.
//   criticals  [method][trace], see order_of()
[[nodiscard]] std::vector<Ranked> rank_methods(
    const std::map<std::string, std::vector<double>>& criticals, std::size_t group,
    const ReportOptions& options);

struct SweepReport {
  ReportOptions options;
  std::vector<Group> groups;
  std::vector<Curve> curves;    // by trace, group, critical footprint
  std::vector<Front> fronts;    // by trace, group
  std::vector<Ranked> ranking;  // by group, mean rank
  Counts counts;
};
// Of the cells that are done and whose attention was measured.
[[nodiscard]] SweepReport make_report(const SweepFolder& sweep, const ReportOptions& options);

}  // namespace kvspan::sweep
