// SPDX-License-Identifier: Apache-2.0
// Matched budgets: the knob of every policy is turned until all of them reach the same value.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sim/ledger/metrics.h"
#include "sim/policy/registry.h"
#include "sim/replay/options.h"
#include "sim/run/result.h"

namespace kvspan {

// A spec whose policy has a knob, and the spec at another position of it.
struct Tunable {
  RecipeSpec spec;  // without arguments that size it in place of the knob
  Knob knob;
  std::string term;   // whose parameter the knob is
  std::string value;  // of the parameter, as the spec has it
  [[nodiscard]] RecipeSpec at(TokenCount position) const;
  // The knob is a budget: entries, or a share.
  [[nodiscard]] bool turns_amount() const;
};
// Of a budget only its kind is kept: a share where it means something else than tokens, under
// chunked(). nullopt: nothing to turn. Errors: as of make_policy().
[[nodiscard]] std::optional<Tunable> make_tunable(const RecipeSpec& spec, const Geometry& geometry);

struct MatchTarget {
  enum class What : std::uint8_t { footprint, peak_bytes, mass };
  What what = What::footprint;
  double value = 0;
  std::string text;  // as written
};
// "footprint=0.4", "peak_bytes=12MiB", "mass=0.95". Errors: ConfigError.
[[nodiscard]] MatchTarget parse_match(const std::string& text);

// The full cache is what others are compared with: it runs along as it is.
[[nodiscard]] bool is_baseline(const RecipeSpec& spec);

// run_policies() with every knob tuned: the largest position whose value is at most the target
// (mass: the smallest with at least it, that is, the critical footprint; where a knob is not
// monotone, the closest of 32 positions). All policies are searched together, one replay a step.
// Errors: ConfigError for a policy without a knob, or with arguments that stand in its place.
[[nodiscard]] std::vector<RunResult> run_matched(const Trace& trace,
                                                 const std::vector<RecipeSpec>& specs,
                                                 const MatchTarget& target,
                                                 const EngineOptions& options,
                                                 const Accounting& accounting);

}  // namespace kvspan
