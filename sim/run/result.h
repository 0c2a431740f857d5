// SPDX-License-Identifier: Apache-2.0
// What one replay of one trace under several policies yields. Plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sim/ledger/ledger.h"
#include "sim/ledger/metrics.h"
#include "sim/replay/fidelity.h"
#include "sim/replay/score_pass.h"
#include "sim/trace/trace.h"

namespace kvspan {

struct RunResult {
  std::string spec;   // canonical
  std::string label;  // short: as the user wrote it
  std::string klass;
  bool bound = false;
  std::vector<std::string> notes;
  Ledger ledger;
  Metrics metrics;
  std::optional<Fidelity> fidelity;       // absent: --fidelity none
  std::optional<std::int64_t> undecided;  // score traces only
  // --match: what was wanted and reached.
  struct Match {
    std::string what;
    double wanted = 0, reached = 0;
    bool reachable = true;           // wanted lies in the range of what was tried
    bool met = true;                 // within one point of it, or 1 % of bytes
    double lowest = 0, highest = 0;  // the range
    std::optional<double> next;      // of the nearest setting on the other side of wanted
    // Of retained attention on a score trace, where `reached` is a lower bound: the upper one; and
    // the footprint of the smallest setting whose upper bound reaches what is wanted.
    std::optional<double> upper, least_footprint;
  };
  std::optional<Match> match;  // absent: not tuned
  // Against the best that any eviction policy could do that knows the future (regret.h).
  struct Regret {
    double optimum = 0;    // retained attention at this run's own occupancy after every pass
    double regret = 0;     // optimum - this run's
    double footprint = 0;  // the smallest at which so much could be retained as this run did
  };
  std::optional<Regret> regret;  // absent: not asked for, or the run alters keys or values
};

struct FrontierPoint {
  double footprint = 0, retained = 0;
};

// Who took retained attention and output error, of policies that hold entries plainly.
struct ScoreDevice {
  std::string name;
  std::optional<ScoreAudit> audit;
};

struct RunReport {
  std::vector<std::string> command;
  std::string trace_path, trace_sha256;
  TraceMeta trace;
  std::int64_t chunk = 0;
  Accounting accounting;
  std::vector<RunResult> runs;
  std::string lifetimes_path, timeline_path;  // empty: not written
  std::optional<ScoreDevice> device;          // absent: measured on the way, by the CPU
  // The most that can be retained at a footprint, ascending; empty: regrets were not asked for.
  std::vector<FrontierPoint> frontier;
  // [runs] with RunRequest::plans: when the best plan at the run's own occupancy lets its entries
  // die, as Ledger::death; empty: the run has no regret. For report_of_plans().
  std::vector<std::vector<std::uint32_t>> plans;
};

}  // namespace kvspan
