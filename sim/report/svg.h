// SPDX-License-Identifier: Apache-2.0
// A report as one standalone SVG picture, without Qt.
#pragma once

#include <string>

#include "sim/run/result.h"

namespace kvspan {

// Two panels over a legend that also gives peak, footprint and retained attention of every run:
// memory over rows with each run's peak marked, and footprint against retained attention of decode
// rows (bounds hollow). Up to 8 runs have a colour each; of more, runs whose specs differ only in
// numbers share one, told apart by dashes and numbers and joined by a line in the right panel.
// At most two points per pixel column: its smallest and its largest value.
[[nodiscard]] std::string memory_svg(const RunReport& report);

}  // namespace kvspan
