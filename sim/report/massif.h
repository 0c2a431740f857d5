// SPDX-License-Identifier: Apache-2.0
// A run's memory over time as a heap profile, for massif-visualizer and ms_print.
#pragma once

#include <string>

#include "sim/run/result.h"

namespace kvspan {

// Massif's output: a snapshot at each of timeline_rows(), a row a millisecond; the heap is KV, what
// it calls extra is overhead. The snapshot of the peak is split by layer where the bytes are those
// of entries as they were born (no blocks, no other representation).
// Errors: ConfigError when the report has several runs, which the format has no place for.
// Source: Valgrind's ms_print.
[[nodiscard]] std::string massif_profile(const RunReport& report);

}  // namespace kvspan
