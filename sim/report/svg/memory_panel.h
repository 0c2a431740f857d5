// SPDX-License-Identifier: Apache-2.0
// The left panel: memory over rows, with the peak of every run.
#pragma once

#include <vector>

#include "sim/report/svg/canvas.h"
#include "sim/report/svg/series.h"

namespace kvspan::svg {

// REQUIRES: a report of at least one run and one row; `series` are those of it.
void draw_memory(Canvas& canvas, const RunReport& report, const std::vector<Series>& series,
                 const Box& plot);

}  // namespace kvspan::svg
