// SPDX-License-Identifier: Apache-2.0
// What is open and how it is looked at, as JSON, so that the next start goes on where this one
// ended.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "gui/model/document.h"

namespace kvspan::gui {

// Files, and per run visibility and colour; current, baseline, zoom, selection, focus, display.
//   left_out  paths that are not to be listed (results that live in a temporary folder)
[[nodiscard]] nlohmann::json session_of(const Document& document,
                                        const std::vector<std::filesystem::path>& left_out = {});
// The files that a session names. Never fails: what is malformed names nothing.
[[nodiscard]] std::vector<std::filesystem::path> files_of(const nlohmann::json& session);
// Brings back everything but the files, as far as it fits what is open; never fails.
void restore(const nlohmann::json& session, Document& document);

// What a result is opened again by: its path, or, of an evaluation, the file that all samples are
// of.
[[nodiscard]] std::string file_of(const Result& result);

// Words of quantities, stacks and figures of heads, on the command line and in sessions.
[[nodiscard]] const std::vector<std::string>& quantity_names();  // in the order of Quantity
[[nodiscard]] const std::vector<std::string>& stack_names();
[[nodiscard]] const std::vector<std::string>& head_figure_names();

}  // namespace kvspan::gui
