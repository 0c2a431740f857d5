// SPDX-License-Identifier: Apache-2.0
// What `kvspan report` says of files of evaluations: critical footprints and peaks by task, the
// front, the ranking over tasks; in the forms of a sweep's report.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/sweep/curves.h"
#include "tracegen/eval/eval.h"

namespace kvspan::tracegen {

// Methods over the tasks that the model does, by critical footprint: those that ran on all of them.
[[nodiscard]] std::vector<sweep::Ranked> rank_tasks(const EvalResult& result);

// Policies that no other one beats in mean footprint and score, by footprint: places in
// TaskResult::policies; bounds cannot be among them.
[[nodiscard]] std::vector<std::size_t> front_of(const TaskResult& task);

[[nodiscard]] std::string critical_markdown(const EvalResult& result);
// A line a task and method. Columns: critical_csv_schema().
[[nodiscard]] std::string critical_csv(const EvalResult& result);
[[nodiscard]] nlohmann::json critical_csv_schema();
//   sources  the files that it is of
[[nodiscard]] nlohmann::json critical_json(const EvalResult& result,
                                           const std::vector<std::string>& sources);
// Footprint against score, as a share of the full cache's, a panel a task.
[[nodiscard]] std::string critical_svg(const EvalResult& result);

}  // namespace kvspan::tracegen
