// SPDX-License-Identifier: Apache-2.0
// The right panel: footprint against retained attention, a dot a run (bounds hollow).
#pragma once

#include <span>
#include <vector>

#include "sim/report/svg/canvas.h"
#include "sim/report/svg/series.h"

namespace kvspan::svg {

struct RetainedOptions {
  // The most that can be retained at a footprint; what lies beyond is shaded. Empty: not known.
  std::span<const FrontierPoint> frontier;
  bool names = false;  // runs are labelled by name, however many there are
};

void draw_retained(Canvas& canvas, const std::vector<Series>& series, const Box& plot,
                   const RetainedOptions& options = {});

}  // namespace kvspan::svg
