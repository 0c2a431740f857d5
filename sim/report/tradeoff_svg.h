// SPDX-License-Identifier: Apache-2.0
// Footprint against retained attention of every run as one large standalone SVG, without Qt.
#pragma once

#include <string>

#include "sim/run/result.h"

namespace kvspan {

// One dot a run, labelled by name and coloured by what it does (bounds hollow); with regrets the
// frontier that no eviction policy can cross, and what lies beyond it shaded.
[[nodiscard]] std::string tradeoff_svg(const RunReport& report);

}  // namespace kvspan
