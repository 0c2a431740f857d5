// SPDX-License-Identifier: Apache-2.0
// Memory over rows as a chart of characters.
#pragma once

#include <string>

#include "sim/run/result.h"

namespace kvspan {

// Resident bytes over rows of at most six runs, in at most `height` lines (legend included) of at
// most `width` characters, every line ended by '\n'. A column shows its largest value; runs that
// cannot be told apart share a mark. More than six (fewer where the legend has no room): `full` and
// others, evenly spread over memory held. Less than 40 x 8 is drawn as 40 x 8. A report without
// runs or rows: "".
[[nodiscard]] std::string memory_chart(const RunReport& report, int width, int height, bool utf8);

}  // namespace kvspan
