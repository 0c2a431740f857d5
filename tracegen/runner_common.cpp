// SPDX-License-Identifier: Apache-2.0
#include "tracegen/runner_common.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "sim/error.h"

namespace kvspan::tracegen {
namespace {

constexpr std::int64_t kLogitBytes = std::int64_t{128} << 20;

}  // namespace

std::int64_t head_block_rows(const ModelSpec& spec) {
  return std::clamp<std::int64_t>(kLogitBytes / (4 * spec.vocabulary), 16, kWave);
}

void embed_rows(const Checkpoint& checkpoint, std::span<const std::int32_t> ids,
                std::span<float> hidden) {
  const WeightMatrix& embedding = checkpoint.embedding();
  const std::int64_t width = checkpoint.spec().hidden;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= embedding.rows) {
      throw CheckpointError(
          fmt::format("token id {} at position {}; the model's vocabulary is [0, {})", ids[i], i,
                      embedding.rows));
    }
    float* out = hidden.data() + static_cast<std::int64_t>(i) * width;
    widen_rows(embedding, ids[i], 1, out);
    require_finite(out, width, embedding.name);
  }
}

void require_finite(const float* x, std::int64_t count, const std::string& what) {
  // One pass without branches: a sum of zeros is NaN if any element is not finite.
  float zero = 0;
  for (std::int64_t i = 0; i < count; ++i) zero += x[i] * 0.0F;
  if (zero != 0.0F || std::isnan(zero)) {
    throw CheckpointError(
        fmt::format("{}: not finite (NaN or infinity); the weights, or an overflow", what));
  }
}

}  // namespace kvspan::tracegen
