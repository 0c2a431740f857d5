// SPDX-License-Identifier: Apache-2.0
// The analytic model: footprint, peak and bytes from closed forms, without a trace.
//
// A policy whose number of entries does not depend on content declares capacity(layer, head,
// sizing) beside its rule; occupancy then follows pass by pass:  after = min(past + rows,
// capacity), and with it every figure. The paper's own formulas stand apart, in paper_formulas.h.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "sim/ledger/metrics.h"
#include "sim/policy/registry.h"

namespace kvspan {

// How far a prediction can be trusted.
enum class Basis : std::uint8_t {
  closed_form,  // equal to the replay's figures, to the last digit
  bound,        // not less than those: how many entries stay depends on the trace
  measured,     // a replay's own figures of this very run
  scaled        // bounds, scaled by what a replay of another run measured: an estimate
};
[[nodiscard]] const char* text_of(Basis basis);

struct Prediction {
  std::string spec;
  Basis basis = Basis::closed_form;
  double footprint = 0, peak_kv = 0;
  std::int64_t entry_rows = 0, full_entry_rows = 0;
  PeakBytes peak_bytes;
  std::optional<std::int64_t> byte_rows;     // absent for paged layouts
  std::map<std::string, PeakBytes> layouts;  // those that do not depend on which entries leave
  std::vector<std::int64_t> held;            // [passes] entries of all layers and heads, after each
  std::vector<std::int64_t> after;           // [layers] entries of all heads at the end
  std::vector<std::int64_t> after_bytes;     // [layers] their bytes, ideal layout
  std::vector<std::string> notes;
};

// The share of its bound that a policy holds after a pass, 0 to 1: `bound` entries now, and
// `bound_at_prompt` after the pass that ended the prompt (0 before).
using HeldShare =
    std::function<double(const Pass& pass, std::int64_t bound, std::int64_t bound_at_prompt)>;

// Equal to the replay's figures, to the last digit, for every policy with closed_form; upper bounds
// for the others. Errors: ConfigError for a layout that depends on which entries
// leave ("paged16_per_head"; its "_compact" variant does not).
// every_layout: also of the layouts that were not asked for; without them it is much faster.
// share: of what the closed forms say is taken; null: all of it.
[[nodiscard]] Prediction predict(const Policy& policy, const Geometry& geometry,
                                 const Accounting& accounting, bool every_layout = true,
                                 const HeldShare& share = nullptr);

}  // namespace kvspan
