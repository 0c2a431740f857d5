// SPDX-License-Identifier: Apache-2.0
// What is known of a policy as a whole: a recipe says it, merging adds it up, binding hands it on.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "sim/base/types.h"
#include "sim/policy/extras.h"

namespace kvspan {

// Bytes of state that a policy keeps beside its entries, listed as overhead.
struct Charge {
  std::int64_t entry = 0;  // per resident entry (layer, stored head, token)
  std::int64_t once = 0;   // for the whole model
  // For the whole model while `row` attends: summaries and buffers that grow or come and go.
  std::function<std::int64_t(RowIndex row)> during = nullptr;
  [[nodiscard]] std::int64_t at(RowIndex row) const { return once + (during ? during(row) : 0); }
  [[nodiscard]] Charge plus(const Charge& other) const;
};

// The integer that sweeps and --match turn. footprint, bytes and mass never fall as it grows when
// monotone.
struct Knob {
  std::string parameter;
  TokenCount lowest = 1;
  TokenCount highest = 1;
  bool monotone = true;
  std::function<std::string(TokenCount)> value;  // text of the parameter at a knob position
};

struct Traits : TraitExtras {
  bool bound = false;  // reads the future: a bound, not a method
  // Counts do not depend on the content of the trace: capacities are exact, else upper bounds.
  bool closed_form = true;
  int full_layers = 0;  // the model's first layers, left alone
  Charge charge;
  std::vector<RowIndex> cuts;  // rows at which a pass must end beside the engine's own
  std::vector<std::string> notes;
  std::optional<Knob> knob;
};

// Traits of a+b: flags of either, sums of both, the first one's knob. The one place, beside its
// declaration, that knows a trait by name.
[[nodiscard]] Traits merge_traits(const Traits& a, const Traits& b);

}  // namespace kvspan
