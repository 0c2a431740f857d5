// SPDX-License-Identifier: Apache-2.0
// Which rows of a run's timeline the result JSON lists.
#pragma once

#include <cstddef>
#include <vector>

#include "sim/run/result.h"

namespace kvspan {

// Every row in which entries, bytes or active entries differ from the row before, or in which a new
// value of retained attention was measured. More than 4096 rows are thinned: the list is cut into
// equal pieces, and of each the rows of its largest entries, bytes and active entries and of its
// smallest retained attention stay; so do the first row, the last, and the peaks of the whole run.
[[nodiscard]] std::vector<std::size_t> timeline_rows(const RunResult& run);

// Retained attention in a row, NaN where it was not measured.
[[nodiscard]] float retained_at(const RunResult& run, std::size_t row);

}  // namespace kvspan
