// SPDX-License-Identifier: Apache-2.0
// The figures of a cell: what its journal holds and its line of cells.csv shows.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/policy/policy.h"
#include "sim/policy/spec.h"
#include "sim/run/result.h"
#include "sim/sweep/grid.h"

namespace kvspan::sweep {

struct Column {
  const char* name;
  const char* type;  // string, integer, number, boolean
  const char* unit;  // "": none
  const char* help;
};
// Of cells.csv: what the grid knows of a cell, then its figures.
[[nodiscard]] const std::vector<Column>& grid_columns();
[[nodiscard]] const std::vector<Column>& figure_columns();
// A table schema: name, type, unit, description.
[[nodiscard]] nlohmann::json schema_of(const std::vector<Column>& columns);

// {column: value} of figure_columns(); null where something was not measured.
//   about  the report that the run would stand in: trace and accounting
[[nodiscard]] nlohmann::json figures_of(const RunReport& about, const RunResult& run,
                                        const RecipeSpec& spec, const Policy& policy);

// The specification without what a sweep turns: its budget, or another knob. Under chunked() with
// what the budget is of, where that makes another method.
[[nodiscard]] std::string method_of(const RunResult& run, RecipeSpec spec, const Policy& policy);

}  // namespace kvspan::sweep
