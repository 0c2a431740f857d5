// SPDX-License-Identifier: Apache-2.0
// A sample of an evaluation as a document (sim/report/README.md): what its file and its journal
// hold of it, and all that follows follows from.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/report/json.h"
#include "tracegen/eval/eval.h"

namespace kvspan::tracegen {

// The JSON of its report, with `sample`, and with `eval` in each of its runs.
[[nodiscard]] nlohmann::json document_of(const SampleResult& sample, Timelines timelines);
// What figures of a task, means and tables need of it; its runs have no ledger.
// Errors: nlohmann::json::exception when it is no such document.
[[nodiscard]] SampleResult sample_of(const nlohmann::json& document);

// The document of a sample with the runs of `labels` only.
[[nodiscard]] nlohmann::json with_runs(nlohmann::json document,
                                       const std::vector<std::string>& labels);

}  // namespace kvspan::tracegen
