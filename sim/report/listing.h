// SPDX-License-Identifier: Apache-2.0
// What every report says of its runs in the same way: their order, their names, their notes.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "sim/run/result.h"

namespace kvspan {

// Indices of the runs as every report lists them: `full` first, then as given, bounds last.
[[nodiscard]] std::vector<std::size_t> display_order(const RunReport& report);
// The label of a run, in one line.
[[nodiscard]] std::string label_of(const RunResult& run);
// Decode rows, or all rows where no decode row was measured; null without fidelity.
[[nodiscard]] const PhaseFidelity* judged_phase(const RunResult& run);

// The notes of a run with those that follow from the report itself: the layers that its bytes are
// of, that it is a bound, that its percentiles are from a histogram.
[[nodiscard]] std::vector<std::string> notes_of(const RunReport& report, const RunResult& run);

// "bytes of 3 of 30 layers", or empty when the trace stores all of them.
[[nodiscard]] std::string layer_subset(const TraceMeta& trace);

}  // namespace kvspan
