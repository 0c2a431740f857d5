// SPDX-License-Identifier: Apache-2.0
// What a run is asked for, as plain values: the command line and the viewer fill the same.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "sim/ledger/metrics.h"
#include "sim/policy/spec.h"
#include "sim/replay/memory_plan.h"
#include "sim/run/match.h"
#include "sim/run/result.h"

namespace kvspan {

struct RunRequest {
  std::vector<RecipeSpec> specs;  // without sets; see expand_policies()
  // Policies that the trace cannot serve, or `match` cannot tune, are left out, not refused.
  bool skips = false;
  EngineOptions engine;  // but progress and cancelled, which are the watcher's
  std::string
      evict_point;  // a span or a row of the trace, in place of engine.evict_point; empty: unused
  bool layerwise = false;  // see Accounting
  std::string layout = "ideal";
  std::optional<MatchTarget> match;
  bool regret = false;  // compare with the optimum, see regret.h
  bool plans = false;   // and keep its plans
  double audit = 0;     // share of the rows of engine.scores that the CPU takes as well
  // For the report.
  std::vector<std::string> command;
  std::string lifetimes_path, timeline_path;  // empty: not written
  std::function<std::string()> checksum;      // of the trace; empty: the report has none

  [[nodiscard]] Accounting accounting() const { return {engine.kv_bytes, layerwise, layout}; }
};

// What is about to run: every refusal has been made.
struct RunOutline {
  std::size_t policies = 0;
  MemoryPlan memory;
  std::vector<std::string> unserved, untunable;  // left out, by label
};

// Policies [begin, end) of `total`, which are replayed together.
struct RunBatch {
  std::size_t begin = 0, end = 0, total = 0;
  std::string label;  // of the first
};

// Who looks on. Every function may be empty.
struct RunWatch {
  std::function<void(const RunOutline&)> begins;
  // done: share of the batch, from any thread.
  std::function<void(const RunBatch&, double done)> progress;
  std::function<void(double done)> solving;  // of the optima that regrets are taken against
  std::function<bool()> cancelled;           // polled; true ends the run with Interrupted
  // Given, policies are replayed in batches of 1, 2, 4, ...: the first one is there at once, and
  // attention, which a batch shares, is computed a few times at most. Sees all that is finished.
  std::function<void(const RunReport&, const RunBatch&)> grown;
};

// --fidelity: "auto", "all", "none" or "rows=K". Errors: ConfigError.
void apply_fidelity(const std::string& text, EngineOptions& engine);

// --sample: "rows=K", "heads=K" or "layers=K"; empty: everything. Errors: ConfigError.
void apply_sample(const std::string& text, EngineOptions& engine);

// Every text of the user as specs without sets: "all" is every policy that runs alone without
// files, "@file.json" a JSON list of specs; `budgets` multiply every spec that takes one.
// Errors: ConfigError.
//   repeated  receives specs that the texts give more than once, which run once; may be null
[[nodiscard]] std::vector<RecipeSpec> expand_policies(const std::vector<std::string>& texts,
                                                      const std::vector<std::string>& budgets,
                                                      std::vector<std::string>* repeated = nullptr);

// The spec as reports show it: to_text(), but that a method of the user goes by its own name, as in
// "mine(budget=20%)" for scores(file=mine.safetensors,budget=20%,name=mine).
[[nodiscard]] std::string label_of(const RecipeSpec& spec);

// Files that the policies read: "@file.json" of the texts, and of the specs every parameter whose
// unit is "file", with the shards of a trace.
[[nodiscard]] std::vector<std::filesystem::path> files_of_policies(
    const std::vector<std::string>& texts, const std::vector<RecipeSpec>& specs);

}  // namespace kvspan
