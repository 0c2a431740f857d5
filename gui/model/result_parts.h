// SPDX-License-Identifier: Apache-2.0
// The files that a result is read from. Internal to result.cpp.
#pragma once

#include <filesystem>
#include <memory>

#include "gui/model/result.h"
#include "gui/model/result_node.h"
#include "sim/trace/safetensors.h"

namespace kvspan::gui {

// Errors of all: TraceError, one line that begins with the path.

[[nodiscard]] nlohmann::json parse_json(const std::filesystem::path& path);
// All that a result JSON says.
void read_json(const std::filesystem::path& path, nlohmann::json document, Result& result);

// The rows of a JSON timeline, ascending; a series of it, with a value for each of them, null where
// there is none. REQUIRES of the second: a row.
[[nodiscard]] std::vector<RowIndex> json_rows(const Node& timeline, RowIndex tokens);
[[nodiscard]] SeriesPtr json_series(const Node& timeline, const char* name,
                                    const std::vector<RowIndex>& rows, RowIndex tokens);

// Whether it is what kvspan replay writes; then its pools, each a run.
// REQUIRES: result.trace.tokens.
[[nodiscard]] bool is_replay(const nlohmann::json& document);
void read_pools(const Node& root, Result& result);

// What a timeline file says of its trace and runs, without the series.
void read_head(const TensorSet& file, const std::filesystem::path& path, Result& result);
// The series and polygons of run `r` of a timeline file.
void read_levels(const std::shared_ptr<const TensorSet>& file, const std::filesystem::path& path,
                 std::size_t r, const TraceInfo& trace, Run& run);

// Likewise of a lifetimes file. Memory: one layer, and what is kept: the points where slopes
// change.
void read_head(const LifetimesFile& file, Result& result);
void read_lives(const LifetimesFile& file, int r, Run& run);

}  // namespace kvspan::gui
