// SPDX-License-Identifier: Apache-2.0
// The legend below the panels, with the figures of every run.
#pragma once

#include <vector>

#include "sim/report/svg/canvas.h"
#include "sim/report/svg/series.h"

namespace kvspan::svg {

// Returns where it ends.
double draw_legend(Canvas& canvas, const std::vector<Series>& series, double left, double right,
                   double top);

}  // namespace kvspan::svg
