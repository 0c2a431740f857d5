// SPDX-License-Identifier: Apache-2.0
// The result JSON (schema_version 1).
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "sim/run/result.h"

namespace kvspan {

// Beyond the documented keys: runs[].label, runs[].match and runs[].timeline.overhead_bytes. Texts
// are made valid UTF-8, so that dump() cannot fail. `retained_mass`, wherever it stands, is
// retained attention.
//
// timeline holds the rows of timeline_rows.h; entries and bytes hold until the next listed row;
// retained_mass is null where it was not measured.
//
// per_layer[].layer is the model's layer; the axes of per_head are the trace's layers and the
// stored heads (retained_mass: query heads).
[[nodiscard]] nlohmann::json to_json(const RunReport& report);

// Its parts, for other forms of it: the root without its runs, and a run without the arrays that
// have no place in one line (timeline, per_layer, per_head).
[[nodiscard]] nlohmann::json root_json(const RunReport& report);
[[nodiscard]] nlohmann::json figures_json(const RunReport& report, const RunResult& run);
[[nodiscard]] nlohmann::json peak_json(const PeakBytes& peak);

}  // namespace kvspan
