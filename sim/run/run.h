// SPDX-License-Identifier: Apache-2.0
// A whole run: a request in, a report out. What `kvspan run` and the viewer do, as one function.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sim/replay/engine.h"
#include "sim/run/match.h"
#include "sim/run/request.h"
#include "sim/run/result.h"
#include "sim/trace/trace.h"

namespace kvspan {

// Every refusal comes before any work.
// Errors: ConfigError, TraceError (unless `skips`), PolicyError, Interrupted.
[[nodiscard]] RunReport run(const Trace& trace, const RunRequest& request,
                            const RunWatch& watch = {});

// ---- Its parts ----------------------------------------------------------------------------------

// Specs, and their policies bound to one trace.
struct Entrants {
  std::vector<RecipeSpec> specs;
  Lineup lineup;
  // Policies [begin, end).
  [[nodiscard]] Entrants slice(std::size_t begin, std::size_t end) const;
};
// Binds one policy more; or says why the trace cannot serve it. Errors: ConfigError.
//   entrants  REQUIRES: of `trace`, with the geometry in its lineup
[[nodiscard]] std::optional<std::string> why_not_enter(const Trace& trace, const RecipeSpec& spec,
                                                       Entrants& entrants);
// Errors: ConfigError; TraceError when the trace cannot serve one of them.
[[nodiscard]] Entrants enter(const Trace& trace, const Geometry& geometry,
                             const std::vector<RecipeSpec>& specs);

// The row of --evict-at: of a span's begin, or a row number. Errors: ConfigError.
[[nodiscard]] RowIndex evict_row(const Trace& trace, const std::string& text);

// What a report says of one replay, and of one on a model.
[[nodiscard]] RunResult result_of(const Trace& trace, const RecipeSpec& spec, const Policy& policy,
                                  Replay&& replay, const Accounting& accounting);

// Replays them in one pass over the scores.
[[nodiscard]] std::vector<RunResult> run_policies(const Trace& trace, const Entrants& entrants,
                                                  const EngineOptions& options,
                                                  const Accounting& accounting);
[[nodiscard]] std::vector<RunResult> run_policies(const Trace& trace,
                                                  const std::vector<RecipeSpec>& specs,
                                                  const EngineOptions& options,
                                                  const Accounting& accounting);

}  // namespace kvspan
