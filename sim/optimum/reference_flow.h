// SPDX-License-Identifier: Apache-2.0
// The best eviction plan as a textbook min-cost flow on Boost.Graph: to read, and to compare the
// fast solver (slot_flow.h) with. All nodes and edges are there, so it is for small heads.
#pragma once

#include "sim/optimum/values.h"

namespace kvspan::optimum {

inline constexpr int kReferenceEntries = 512;  // at most: half a gigabyte, and some minutes

// A plan that gains most. Errors: ConfigError for more entries than that.
[[nodiscard]] Plan reference_plan(const Values& values, const Capacities& capacities);

}  // namespace kvspan::optimum
