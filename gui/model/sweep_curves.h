// SPDX-License-Identifier: Apache-2.0
// Footprint against retained attention by method, over the traces of a sweep; and how small each
// method can make the cache. Critical footprints and fronts are those of sim/sweep/curves.h.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "gui/model/curve_chart.h"
#include "gui/model/plain_table.h"
#include "gui/model/sweep.h"

namespace kvspan::gui {

// Lines in colour, and all that are drawn.
inline constexpr std::size_t kFeaturedLines = 8, kMostLines = 48;

struct SweepCurves {
  struct Method {
    std::string name;
    bool bound = false;
    // Of each of `traces`; nullopt: it did not run there.
    std::vector<std::optional<sweep::Critical>> critical;
    // Over the traces, if it crosses on all of them; "less than x" counts as x.
    std::optional<double> mean;
    std::optional<sweep::Interval> interval;  // 95 %, bootstrap over traces; of two and more
    CurveChart::Line line;                    // its points are means over the traces
    std::vector<std::size_t> traces_of_point;
    std::vector<std::string> budget_of_point;
  };
  std::vector<std::size_t> traces;  // in the plan
  std::vector<Method> methods;      // by critical footprint; who never crosses comes last
  CurveChart chart;                 // of the first kMostLines methods
};

// Settings of the report that the filter takes, as indices into its groups.
[[nodiscard]] std::vector<std::size_t> groups_of(const Sweep& sweep,
                                                 const sweep::SweepReport& report,
                                                 const SweepFilter& filter);

// One setting's curves of the traces, methods and budgets that the filter takes. A point is one
// specification over the traces that it is done on. Critical footprints are of all budgets.
[[nodiscard]] SweepCurves make_sweep_curves(const Sweep& sweep, const sweep::SweepReport& report,
                                            const SweepFilter& filter, std::size_t group);

// A line a method: critical footprint, its interval, and that on each trace. A row stands for its
// method's index.
void set_criticals(const SweepCurves& curves, const Sweep& sweep, PlainTable& table);
// A line a point.
[[nodiscard]] std::string curves_csv(const SweepCurves& curves, const sweep::SweepReport& report,
                                     std::size_t group);

}  // namespace kvspan::gui
