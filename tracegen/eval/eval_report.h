// SPDX-License-Identifier: Apache-2.0
// An evaluation as a table and as JSON.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/report/listing.h"
#include "tracegen/eval/eval.h"

namespace kvspan::tracegen {

// The JSON of several runs (sim/report/README.md), a document for each sample, and beside them
// `eval`: figures by task and policy, critical footprints. The same for the same request, however
// it was computed.
[[nodiscard]] nlohmann::json to_json(const EvalResult& result,
                                     const std::vector<std::string>& command);
// The runs of all samples, a line each, as of sim/report/csv.h.
[[nodiscard]] std::string to_csv(const EvalResult& result);

// Rows of cells, headings first: of policies, of critical footprints, of proxies on trial.
using Cells = std::vector<std::vector<std::string>>;
[[nodiscard]] Cells policy_cells(const TaskResult& task, Footnotes& footnotes);
[[nodiscard]] Cells critical_cells(const TaskResult& task, double least, Footnotes& footnotes);
[[nodiscard]] Cells proxy_cells(const TaskResult& task);

}  // namespace kvspan::tracegen
