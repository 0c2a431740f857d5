// SPDX-License-Identifier: Apache-2.0
// What the CPU and the CUDA runner share.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

inline constexpr std::int64_t kWave = 1024;  // rows that go through a layer together

// Rows of logits that one block of Runner::head() holds.
[[nodiscard]] std::int64_t head_block_rows(const ModelSpec& spec);

// fp32 rows of the embedding: hidden [ids.size(), hidden]. Errors: CheckpointError on an id outside
// the vocabulary, or weights that are not finite.
void embed_rows(const Checkpoint& checkpoint, std::span<const std::int32_t> ids,
                std::span<float> hidden);

// Errors: CheckpointError naming `what` if any element is NaN or infinite.
void require_finite(const float* x, std::int64_t count, const std::string& what);

}  // namespace kvspan::tracegen
