// SPDX-License-Identifier: Apache-2.0
// Weights of 4 and 8 bits that stay packed in memory, in the order of the dense product: panels of
// outputs, as keys lie in attention (sim/attention/kernels.h), which are widened when they are
// used. A fifth to a third of the memory of fp32, which decode reads for every batch of rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

// GGUF's blocks of 32 numbers with one scale: Q4_0, Q4_1, Q8_0.
[[nodiscard]] bool stays_packed(WeightType type);

// Of one panel: kernels::kPanel outputs of W.
[[nodiscard]] std::int64_t packed_panel_bytes(const WeightMatrix& w);

// Outputs [first, first + kPanel); those behind the last one are 0. REQUIRES: stays_packed(w.type).
//   out  [packed_panel_bytes(w)], on a boundary of floats
void pack_panel(const WeightMatrix& w, std::int64_t first, std::byte* out);

// out [columns, kPanel]: bit for bit what pack_keys() makes of the widened rows.
void widen_panel(const WeightMatrix& w, const std::byte* panel, float* out);

}  // namespace kvspan::tracegen
