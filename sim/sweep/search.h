// SPDX-License-Identifier: Apache-2.0
// The critical budget itself: not interpolated between the budgets of a sweep, but searched on the
// traces, by bisection.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/sweep/curves.h"

namespace kvspan::sweep {

// Of one curve of a report.
struct CriticalBudget {
  std::size_t curve = 0;  // in SweepReport::curves
  std::string spec;       // canonical, at that budget
  std::string budget;     // as text; empty: the method turns something else
  double footprint = 0;
  double retained = 0;               // at least F, unless it is out of reach
  std::optional<Interval> estimate;  // 95 %, where that is estimated from a sample
  std::optional<double> below;       // of the largest setting tried that retains less
  bool reached = false;
  std::string why_not;  // what cannot be turned, or fails; the rest means nothing
};

struct SearchOptions {
  double least = 0.9;  // F
  std::string sample;  // as Config::sample, in place of the sweep's own; empty: that
  int threads = 0;     // 0: all cores
  std::function<void(double done)> progress;
  std::function<bool()> cancelled;  // polled; true ends the search with Interrupted
};

// For every curve of the report but bounds: the smallest budget that keeps F of the attention, to
// one entry (or step of a share), by replays on its trace in its setting. Methods of a setting are
// searched together; where the knob is no budget that more of always keeps more, among 32 settings.
// Errors: TraceError when a trace has changed since the sweep; Interrupted.
[[nodiscard]] std::vector<CriticalBudget> search_budgets(const SweepFolder& sweep,
                                                         const SweepReport& report,
                                                         const SearchOptions& options);

[[nodiscard]] std::string to_markdown(const std::vector<CriticalBudget>& found,
                                      const SweepReport& report, const Plan& plan, double least);
[[nodiscard]] nlohmann::json to_json(const std::vector<CriticalBudget>& found,
                                     const SweepReport& report, const Plan& plan);

}  // namespace kvspan::sweep
