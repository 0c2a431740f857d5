// SPDX-License-Identifier: Apache-2.0
// What BaKlaVa-like budgets are fitted on: how much heads change values, and what windows would
// lose.
#pragma once

#include <vector>

#include "sim/policies/shared/head_masks.h"

namespace kvspan::policies {

struct Calibration {
  RowIndex rows = 0;      // it covers the prompt's rows before this one
  HeadScores importance;  // [stored layers][kv_heads]
  // Mean mass of keys more than `distance` rows back, sinks excluded.
  //   [stored layers][kv_heads][distance]
  std::vector<std::vector<std::vector<double>>> lost;
};

// On rows [0, end) of a trace of the same heads.
[[nodiscard]] Calibration calibrate(const Trace& trace, RowIndex end, TokenCount sinks,
                                    const Geometry& geometry);

}  // namespace kvspan::policies
