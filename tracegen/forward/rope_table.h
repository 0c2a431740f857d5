// SPDX-License-Identifier: Apache-2.0
// Cosines and sines of the rotary embedding, one row a position; the CPU and the CUDA path share
// it.
#pragma once

#include <cstdint>
#include <vector>

#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

// cosine, sine: [rows, pairs] for positions first, first + 1, ..., the attention factor applied.
// Angles are computed as Hugging Face transformers computes them: fp32 frequency times position.
struct RopeTable {
  std::int64_t pairs = 0;
  std::vector<float> cosine, sine;
};
[[nodiscard]] RopeTable rope_table(const ModelSpec& spec, std::int64_t first, std::int64_t rows);

}  // namespace kvspan::tracegen
