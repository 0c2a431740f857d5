// SPDX-License-Identifier: Apache-2.0
// The right panel: footprint against retained attention, a dot a run (bounds hollow).
#pragma once

#include <vector>

#include "sim/report/svg/canvas.h"
#include "sim/report/svg/series.h"

namespace kvspan::svg {

void draw_retained(Canvas& canvas, const std::vector<Series>& series, const Box& plot);

}  // namespace kvspan::svg
