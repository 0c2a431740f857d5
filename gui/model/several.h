// SPDX-License-Identifier: Apache-2.0
// Results of several traces or chunk sizes in one file. Each has a name of its own, by which it can
// be opened alone, too: the file's with its number, "all.json[2]".
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include "gui/model/result.h"

namespace kvspan::gui {

// {"all.json", 2} of "all.json[2]"; nullopt: the name of a file.
[[nodiscard]] std::optional<std::pair<std::filesystem::path, std::size_t>> part_of(
    const std::filesystem::path& path);

// All results of a file: one, unless it is JSON that holds several. Errors: as of open_result().
[[nodiscard]] std::vector<ResultPtr> open_results(const std::filesystem::path& path);

}  // namespace kvspan::gui
