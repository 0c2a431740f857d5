// SPDX-License-Identifier: Apache-2.0
#include "tracegen/forward/layer_math.h"

#include <string>

#include <fmt/format.h>
#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include "tracegen/forward/dense_kernels.h"
#include "tracegen/forward/rope_table.h"
#include "tracegen/forward/runner_common.h"

namespace kvspan::tracegen {
namespace {

void for_rows(std::int64_t rows, const std::function<void(std::int64_t)>& use) {
  tbb::parallel_for(tbb::blocked_range<std::int64_t>(0, rows, 16), [&](const auto& range) {
    for (std::int64_t r = range.begin(); r < range.end(); ++r) use(r);
  });
}

std::int64_t count(std::span<const PositionRun> positions) {
  std::int64_t rows = 0;
  for (const PositionRun& run : positions) rows += run.rows;
  return rows;
}

}  // namespace

void LayerMath::norm_rows(const float* x, const std::vector<float>& weight, std::int64_t rows) {
  normed_.resize(static_cast<std::size_t>(rows * spec_.hidden));
  for_rows(rows, [&](std::int64_t r) {
    kernels::rms_norm(x + r * spec_.hidden, weight.data(), spec_.hidden, spec_.norm_eps,
                      normed_.data() + r * spec_.hidden);
  });
}

// Norms of the heads of each row (Qwen3), then the rotation.
void LayerMath::finish_heads(float* rows, std::span<const PositionRun> positions, int heads,
                             const std::vector<float>& norm) const {
  for (const PositionRun& run : positions) {
    const RopeTable rope = rope_table(spec_, run.first, run.rows);
    const std::int64_t width = std::int64_t{heads} * spec_.head_dim;
    for_rows(run.rows, [&](std::int64_t r) {
      for (int h = 0; h < heads; ++h) {
        float* head = rows + r * width + std::int64_t{h} * spec_.head_dim;
        if (!norm.empty())
          kernels::rms_norm(head, norm.data(), spec_.head_dim, spec_.norm_eps, head);
        kernels::rotate_half(head, rope.cosine.data() + r * rope.pairs,
                             rope.sine.data() + r * rope.pairs, rope.pairs);
      }
    });
    rows += run.rows * width;
  }
}

void LayerMath::project(const LayerWeights& w, int layer, std::span<const PositionRun> positions,
                        const float* hidden, const Projected& out) {
  const std::int64_t rows = count(positions);
  norm_rows(hidden, w.attention_norm, rows);
  dense_(normed_.data(), rows, w.q, w.q_bias, out.q, spec_.q_width());
  dense_(normed_.data(), rows, w.k, w.k_bias, out.k, spec_.kv_width());
  dense_(normed_.data(), rows, w.v, w.v_bias, out.v, spec_.kv_width());
  finish_heads(out.q, positions, spec_.query_heads, w.q_norm);
  finish_heads(out.k, positions, spec_.kv_heads, w.k_norm);
  const std::string where = fmt::format("layer {}", layer);
  require_finite(out.q, rows * spec_.q_width(), where + ": q");
  require_finite(out.k, rows * spec_.kv_width(), where + ": k");
  require_finite(out.v, rows * spec_.kv_width(), where + ": v");
}

void LayerMath::add_to(float* hidden, std::int64_t rows) const {
  for_rows(rows, [&](std::int64_t r) {
    kernels::add(hidden + r * spec_.hidden, normed_.data() + r * spec_.hidden, spec_.hidden);
  });
}

void LayerMath::finish(const LayerWeights& w, int layer, const float* attended, std::int64_t rows,
                       float* hidden) {
  const std::int64_t inner = spec_.intermediate;
  normed_.resize(static_cast<std::size_t>(rows * spec_.hidden));
  dense_(attended, rows, w.o, w.o_bias, normed_.data(), spec_.hidden);
  add_to(hidden, rows);
  norm_rows(hidden, w.mlp_norm, rows);
  gate_.resize(static_cast<std::size_t>(rows * inner));
  up_.resize(gate_.size());
  dense_(normed_.data(), rows, w.gate, w.gate_bias, gate_.data(), inner);
  dense_(normed_.data(), rows, w.up, w.up_bias, up_.data(), inner);
  for_rows(rows, [&](std::int64_t r) {
    kernels::silu_multiply(gate_.data() + r * inner, up_.data() + r * inner, inner);
  });
  dense_(gate_.data(), rows, w.down, w.down_bias, normed_.data(), spec_.hidden);
  add_to(hidden, rows);
  require_finite(hidden, rows * spec_.hidden, fmt::format("layer {}: hidden states", layer));
}

void LayerMath::head(const Checkpoint& checkpoint, const float* hidden, std::int64_t rows,
                     float* logits) {
  const WeightMatrix& head = checkpoint.head();
  norm_rows(hidden, checkpoint.final_norm(), rows);
  dense_(normed_.data(), rows, head, {}, logits, head.rows);
  require_finite(logits, rows * head.rows, "the logits");
}

}  // namespace kvspan::tracegen
