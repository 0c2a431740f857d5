// SPDX-License-Identifier: Apache-2.0
// The second value model: what eviction does to the output of attention.
//
// Of one row let p_i be the full cache's probabilities, o = sum of p_i v_i, E the entries that are
// gone, P = 1 - sum over E of p_i what is retained, and o' the output of those that are left, with
// weights p_i / P. Since the sum of p_i (v_i - o) over all entries is 0,
//
//   o' - o     = (1 / P) sum over kept p_i (v_i - o) = -(1 / P) sum over E of p_i (v_i - o)
//   P |o' - o| = |sum over E of p_i (v_i - o)|      <=  sum over E of p_i |v_i - o|  =: D
//
// D adds up over entries and rows: each entry is worth p_i |v_i - o| / |o| instead of p_i, and the
// plan with the least D is a flow as before, exact and proved.
//
// It bounds from above only: the error of that plan is at most D / P in every row (equal where one
// entry is gone), so the best error that eviction can have is no larger. How small it can be is not
// said: what several entries lack may cancel, and a policy may have less error than this plan. So
// there is no regret in errors.
//
// A sink logit is an entry with v = 0 that always stays; rows with o = 0 do not count.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sim/attention/head_attention.h"
#include "sim/optimum/survey.h"
#include "sim/optimum/values.h"
#include "sim/trace/trace.h"

namespace kvspan::optimum {

// As values_of_head(), of p_i |v_i - o| / |o|: D of a plan is what own() and its gains lack of
// everything. REQUIRES: the trace has v.
[[nodiscard]] Values error_values_of_head(const Trace& trace, const StoredHead& stored,
                                          const std::vector<RowIndex>& ends,
                                          std::span<const char> counts);
// What a plan lacks of everything.
[[nodiscard]] Mass missing(const Values& values, const Plan& plan);

// Sums over the rows that count, mean over the query heads that the stored head serves.
struct PlanErrors {
  double retained = 0;  // P
  double weighted = 0;  // P |o' - o| / |o|
  double error = 0;     // |o' - o| / |o|: relative output error
  double bound = 0;     // D / P, which that is at most
};
//   deaths  [plans][tokens] row at which each entry dies
// REQUIRES: the trace has v.
[[nodiscard]] std::vector<PlanErrors> errors_of_head(const Trace& trace, const StoredHead& stored,
                                                     std::span<const char> counts,
                                                     std::span<const std::vector<RowIndex>> deaths);

// ---- A whole trace ------------------------------------------------------------------------------

// Means over the rows that count, layers and heads.
struct ErrorBounds {
  std::int64_t budget = 0;
  double footprint = 0;  // of the plan with the least D
  double least = 0;      // that D
  PlanErrors plan;       // of it
  PlanErrors by_mass;    // of the plan that retains most attention
};
struct ErrorSurvey {
  std::int64_t rows = 0;  // that count
  int heads = 0;          // layers x heads
  std::vector<ErrorBounds> bounds;
  std::int64_t certified = 0;  // plans, each proved best
};
// `shared` and `reference` of the request are not looked at. Memory: twice that of survey().
// Errors: TraceError for a trace without v, or a score trace; Interrupted.
[[nodiscard]] ErrorSurvey error_survey(const Trace& trace, const SurveyRequest& request);

}  // namespace kvspan::optimum
