// SPDX-License-Identifier: Apache-2.0
// How far every run stays behind the best that any eviction policy could do.
#pragma once

#include <functional>
#include <vector>

#include "sim/replay/options.h"
#include "sim/run/result.h"
#include "sim/trace/trace.h"

namespace kvspan {

// Errors: ConfigError without fidelity, TraceError for a score trace: what is asked cannot be had.
void refuse_regrets(const Trace& trace, const EngineOptions& options);

// Fills RunResult::regret and RunReport::frontier.
//   options  those of the replay; its progress and cancelled are polled
//   inside   [runs] false: the run alters keys or values, so that the optimum does not bound it
// Each optimum is exact, for one head at the run's own occupancy after every pass (an entry on the
// host counts as held), and proved; runs of equal occupancy share it.
// Memory: see optimum/survey.h.
// REQUIRES: refuse_regrets() does not. Errors: Interrupted.
void add_regrets(const Trace& trace, const EngineOptions& options, const std::vector<char>& inside,
                 RunReport& report);

}  // namespace kvspan
