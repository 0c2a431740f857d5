// SPDX-License-Identifier: Apache-2.0
// What a policy asks of a trace, and whether the trace can serve it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sim/policy/recipe.h"
#include "sim/replay/options.h"
#include "sim/trace/trace.h"

namespace kvspan {

// The geometry that policies are bound to for a replay of `trace`.
// Errors: ConfigError when prompt, evict_point or chunk do not fit the trace.
[[nodiscard]] Geometry geometry_of(const Trace& trace, const EngineOptions& options);

struct RowRange {
  RowIndex begin = 0, end = 0;
};

// Found out once a policy: to ask its roles, a layer of them is built, and some walk a whole
// layer's attention when they are.
struct Requirements {
  PassPlan passes;
  Needs needs;
  std::vector<RowRange> observed;  // rows of attention that a role looks at
  RowIndex changes_from = 0;       // first row whose reads may differ from the full cache's
};
// Errors: TraceError of a role that fits itself on a trace that cannot serve it.
[[nodiscard]] Requirements requirements_of(const Policy& policy, const Geometry& geometry);

// Why the trace cannot serve the policy, in one line that names the field it lacks; nullopt: it
// can.
[[nodiscard]] std::optional<std::string> why_not(const Trace& trace, const Policy& policy,
                                                 const Requirements& asked);

// Policies bound to one trace, which can serve all of them.
struct Lineup {
  Geometry geometry;
  std::vector<Policy> policies;
  std::vector<Requirements> requirements;  // of policies[i]
  // Policies [begin, end).
  [[nodiscard]] Lineup slice(std::size_t begin, std::size_t end) const;
};
// Errors: TraceError with the reason when the trace cannot serve one of them.
[[nodiscard]] Lineup line_up(const Trace& trace, const Geometry& geometry,
                             std::vector<Policy> policies);

}  // namespace kvspan
