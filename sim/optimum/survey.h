// SPDX-License-Identifier: Apache-2.0
// The bounds of a whole trace at constant budgets: what `kvspan optimum` prints.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "sim/optimum/frontier.h"
#include "sim/optimum/slot_flow.h"
#include "sim/optimum/values.h"
#include "sim/trace/trace.h"

namespace kvspan::optimum {

struct SurveyRequest {
  std::vector<RowIndex> ends;         // of the passes
  std::vector<char> counts;           // [tokens] rows whose attention counts
  std::vector<std::int64_t> budgets;  // entries of each head, ascending
  bool shared = false;                // optimum_layer and optimum_global, too
  bool reference = false;             // compare with reference_flow.h
  int threads = 0;                    // 0: all cores
  // Receives the best plan of a head at each budget: deaths [tokens] rows. From any thread, one at
  // a time; may be null.
  std::function<void(std::size_t budget, const StoredHead& stored,
                     std::span<const RowIndex> deaths)>
      use_deaths;
  SolverWatch watch;
};

// Shares of the attention of the rows that count, mean over layers and heads. bounds.h says what
// each bounds.
struct BudgetBounds {
  std::int64_t budget = 0;
  double footprint = 0;  // of the optimum's plans
  double belady_mass = 0, optimum = 0, optimum_select = 0;
  double optimum_footprint = 0;  // at that footprint
  std::optional<double> optimum_layer, optimum_global;
  std::vector<std::vector<double>> heads;  // [layers][heads] the optimum
};

struct Survey {
  std::int64_t rows = 0;  // that count
  int heads = 0;          // layers x heads
  double own = 0;         // what every row reads of its own pass, whatever the budget
  std::vector<BudgetBounds> bounds;
  std::vector<double> by_budget;  // the optimum for budgets of 0, 1, ..., the largest
  Frontier frontier;
  std::int64_t certified = 0;  // plans, each proved best
};

// Every plan is checked by why_not_best().
// Memory: that of values_of_head() for each head that is worked on at a time, 2 GiB at most or one
// head; with `shared` that of all heads at once.
// Errors: TraceError, see values_of_head(); ConfigError, see reference_plan(); Interrupted.
[[nodiscard]] Survey survey(const Trace& trace, const SurveyRequest& request);

// best_plans(), each proved. Errors: Interrupted.
[[nodiscard]] std::vector<Optimum> proved_plans(const Values& values,
                                                std::span<const Capacities> capacities,
                                                const SolverWatch& watch = {});

}  // namespace kvspan::optimum
