// SPDX-License-Identifier: Apache-2.0
// A whole run: specifications in, results out. What `kvspan run` does, as one function.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sim/ledger/metrics.h"
#include "sim/policy/spec.h"
#include "sim/replay/engine.h"
#include "sim/run/result.h"
#include "sim/trace/trace.h"

namespace kvspan {

// Every text of the user as specs without sets: "all" is every policy that runs alone without files,
// "@file.json" a JSON list of specs; `budgets` multiply every spec that takes one.
// Errors: ConfigError.
[[nodiscard]] std::vector<RecipeSpec> expand_policies(const std::vector<std::string>& texts,
                                                      const std::vector<std::string>& budgets);

// A spec whose policy has a knob, and the spec at another position of it.
struct Tunable {
  RecipeSpec spec;  // without arguments that size it in place of the knob
  Knob knob;
  std::string term;   // whose parameter the knob is
  std::string value;  // of the parameter, as the spec has it
  [[nodiscard]] RecipeSpec at(TokenCount position) const;
};
// nullopt: nothing to turn. Errors: as of make_policy().
[[nodiscard]] std::optional<Tunable> make_tunable(const RecipeSpec& spec, const Geometry& geometry);

// --match: tunes each policy's knob so that all reach the same value.
struct MatchTarget {
  enum class What : std::uint8_t { footprint, peak_bytes, mass };
  What what = What::footprint;
  double value = 0;
  std::string text;  // as written
};
[[nodiscard]] MatchTarget parse_match(
    const std::string& text);  // "footprint=0.4", "peak_bytes=12MiB", "mass=0.95"

// Replays the specs in one pass over the scores. Specs are all bound before any work.
[[nodiscard]] std::vector<RunResult> run_policies(const Trace& trace,
                                                  const std::vector<RecipeSpec>& specs,
                                                  const EngineOptions& options,
                                                  const Accounting& accounting);

// The same, of policies that are bound already. REQUIRES: policies[i] is specs[i], bound.
[[nodiscard]] std::vector<RunResult> run_policies(const Trace& trace,
                                                  const std::vector<RecipeSpec>& specs,
                                                  std::vector<Policy> policies,
                                                  const EngineOptions& options,
                                                  const Accounting& accounting);

// The same with every knob tuned: the largest knob position whose value is at most the target (mass:
// the smallest with at least it; where a knob is not monotone, the closest of 32 positions). All policies are searched together, one replay a step.
// Errors: ConfigError for a policy without a knob.
[[nodiscard]] std::vector<RunResult> run_matched(const Trace& trace,
                                                 const std::vector<RecipeSpec>& specs,
                                                 const MatchTarget& target,
                                                 const EngineOptions& options,
                                                 const Accounting& accounting);

}  // namespace kvspan
