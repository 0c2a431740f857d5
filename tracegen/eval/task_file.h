// SPDX-License-Identifier: Apache-2.0
// A file of samples: JSON lines of one's own (README.md).
#pragma once

#include <filesystem>
#include <vector>

#include "tracegen/eval/task.h"

namespace kvspan::tracegen {

// The first `most` samples; 0: all. Errors: TraceError naming file and line, what was found, and
// what was expected.
[[nodiscard]] std::vector<Sample> read_samples(const std::filesystem::path& file,
                                               std::int64_t most);

}  // namespace kvspan::tracegen
