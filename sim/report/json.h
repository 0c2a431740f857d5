// SPDX-License-Identifier: Apache-2.0
// The result JSON (schema_version 1).
#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "sim/run/result.h"

namespace kvspan {

// Every field: README.md. Texts are made valid UTF-8, so that dump() cannot fail. `retained_mass`,
// wherever it stands, is retained attention; of a score trace a lower bound, with `upper` or
// `retained_mass_upper` beside it (null on qkv traces).
//
// timeline holds the rows of timeline_rows.h; entries and bytes hold until the next listed row;
// retained_mass is null where it was not measured.
//
// per_layer[].layer is the model's layer; the axes of per_head are the trace's layers and the
// stored heads (retained_mass: query heads).
enum class Timelines : std::uint8_t { all, none };  // none: runs have no `timeline`
[[nodiscard]] nlohmann::json to_json(const RunReport& report, Timelines timelines = Timelines::all);

// What wrote a result: version, git, build.
[[nodiscard]] nlohmann::json program_json();

// As a file: indented, but lists of numbers and objects without further ones in a line each.
[[nodiscard]] std::string file_text(const nlohmann::json& value);

// Its parts, for other forms of it: the root without its runs, and a run without the arrays that
// have no place in one line (timeline, per_layer, per_head).
[[nodiscard]] nlohmann::json root_json(const RunReport& report);
[[nodiscard]] nlohmann::json figures_json(const RunReport& report, const RunResult& run);
[[nodiscard]] nlohmann::json peak_json(const PeakBytes& peak);

}  // namespace kvspan
