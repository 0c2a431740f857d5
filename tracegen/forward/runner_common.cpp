// SPDX-License-Identifier: Apache-2.0
#include "tracegen/forward/runner_common.h"

#include <algorithm>
#include <atomic>

#include <fmt/format.h>
#include <tbb/parallel_for.h>

#include "sim/base/error.h"
#include "tracegen/forward/dense_kernels.h"

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
  constexpr std::int64_t kPiece = 1 << 16;
  std::atomic<bool> finite = true;
  tbb::parallel_for(std::int64_t{0}, (count + kPiece - 1) / kPiece, [&](std::int64_t i) {
    if (!kernels::all_finite(x + i * kPiece, std::min(kPiece, count - i * kPiece))) finite = false;
  });
  if (!finite) {
    throw CheckpointError(
        fmt::format("{}: not finite (NaN or infinity); the weights, or an overflow", what));
  }
}

}  // namespace kvspan::tracegen
