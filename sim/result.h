// SPDX-License-Identifier: Apache-2.0
// What one replay of one trace under several policies yields. Plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sim/ledger.h"
#include "sim/metrics.h"
#include "sim/trace.h"

namespace kvspan {

// Fidelity of one phase. Every (layer, query head, row) weighs the same.
struct PhaseFidelity {
  std::int64_t values = 0;
  double mass_mean = 0, mass_p5 = 0, mass_min = 0;  // retained mass
  bool has_error = false;
  double error_mean = 0, error_p95 = 0, error_max = 0;  // relative output error
  // Mean distance of logits in nats where keys are held altered or positions are renumbered.
  std::optional<double> logit_error;
  bool exact_percentiles = true;  // false: from a histogram of 2^16 bins
};

struct SpanResult {
  std::string name;
  double resident_share = 0;  // of its (layer, head, token) entries, at the end
  double mass_lost = 0;  // mean full-cache probability on its entries that were gone, rows after it
};

struct Fidelity {
  std::int64_t rows_measured = 0;
  std::optional<PhaseFidelity> all, prefill, decode;  // absent: no rows measured there
  std::vector<float> row_mass;     // [tokens] mean over layers and query heads, NaN: not measured
  std::vector<double> layer_mass;  // [layers] decode rows, or all rows if there are none
  std::vector<std::vector<double>> head_mass;  // [layers][query_heads], likewise
  std::vector<SpanResult> spans;
};

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
    bool reachable = true;
    double lowest = 0, highest = 0;  // range, when it cannot be reached
  };
  std::optional<Match> match;
};

struct RunReport {
  std::vector<std::string> command;
  std::string trace_path, trace_sha256;
  TraceMeta trace;
  std::int64_t chunk = 0;
  Accounting accounting;
  std::vector<RunResult> runs;
  std::string lifetimes_path, timeline_path;  // empty: not written
};

}  // namespace kvspan
