// SPDX-License-Identifier: Apache-2.0
// The family of the optimum: what cannot be beaten by whom, and a plan that needs no flow.
//
//   belady_mass        evicts what has least attention to come; a plan, so a lower bound
//   optimum            evicts only, at most c_k entries after pass k        (slot_flow.h)
//   optimum_layer      the same where the heads of a layer share the slots  (Values::pool)
//   optimum_global     ... where all heads of the model do
//   optimum_select     may take entries back: the best c_k of all older ones in every pass
//   optimum_footprint  has no limit in any pass, only in entries x rows     (frontier.h)
//
// All bound policies that leave keys and values as they are.
#pragma once

#include "sim/optimum/values.h"

namespace kvspan::optimum {

// After every pass the entries with most attention still to come stay; ties to the lower index.
[[nodiscard]] Plan belady_mass(const Values& values, const Capacities& capacities);

// What the best c_k entries of each pass receive in the next one, whoever was held before.
[[nodiscard]] Mass optimum_select(const Values& values, const Capacities& capacities);

}  // namespace kvspan::optimum
