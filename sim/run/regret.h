// SPDX-License-Identifier: Apache-2.0
// How far every run stays behind the best that any eviction policy could do.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "sim/policy/policy.h"
#include "sim/replay/options.h"
#include "sim/run/result.h"
#include "sim/trace/trace.h"

namespace kvspan {

// Errors: ConfigError without fidelity, TraceError for a score trace: what is asked cannot be had.
void refuse_regrets(const Trace& trace, const EngineOptions& options);

// Whether the optimum bounds it: it leaves keys and values as they are.
[[nodiscard]] inline bool has_regret(const Policy& policy) {
  return !policy.alters_vectors && !policy.demotes;
}

// Anonymous bytes at most of add_regrets() for passes that end so; see optimum/survey.h.
[[nodiscard]] std::int64_t regret_memory(const std::vector<RowIndex>& ends,
                                         const EngineOptions& options);

// What else may be wanted of the optima; null: nothing.
struct RegretExtras {
  std::vector<FrontierPoint>* frontier = nullptr;  // that bounds all runs
  // [runs] the best plan at the run's occupancy, as Ledger::death; empty: it has no regret.
  std::vector<std::vector<std::uint32_t>>* plans = nullptr;
};

// Fills RunResult::regret.
//   options  those of the replay; its progress and cancelled are polled
//   inside   [runs] has_regret() of each
// Each optimum is exact, for one head at the run's own occupancy after every pass (an entry on the
// host counts as held), and proved; runs of equal occupancy share it.
// REQUIRES: refuse_regrets() does not; all runs are of one replay. Errors: Interrupted.
void add_regrets(const Trace& trace, const EngineOptions& options, const std::vector<char>& inside,
                 std::span<RunResult> runs, const RegretExtras& extras = {});

// A plan as a run without figures, for its lifetimes; and the ledger of one that lets nothing die.
[[nodiscard]] RunResult run_of_plan(const std::string& label, Ledger ledger);
[[nodiscard]] Ledger ledger_of_plan(const TraceMeta& trace, const PassPlan& passes, int heads,
                                    const Representation& born);
// Of the plans that a report holds.
[[nodiscard]] RunReport report_of_plans(const RunReport& report);

}  // namespace kvspan
