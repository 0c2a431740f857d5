// SPDX-License-Identifier: Apache-2.0
// One layer of a trace where its score pass is taken: plain arrays on the host's side. The module
// for CUDA (gpu_replay/cuda/module.h) makes these; score/device_scores.h asks them for a replay.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "sim/replay/score_pass.h"

namespace kvspan::gpu_replay {

enum class ScoreType : std::uint8_t { f32, f16, bf16 };

// q, k and v as a trace holds them, all of one type; they stay where they are as long as the layer.
struct ScoreInput {
  int query_heads = 0, kv_heads = 0;
  int k_dim = 0, v_dim = 0;
  std::int64_t tokens = 0;
  std::int64_t window = 0;  // the model's own, 0: none
  ScoreType type = ScoreType::f32;
  float scale = 1, softcap = 0;
  std::span<const std::byte> q;  // [tokens, query_heads, k_dim]
  std::span<const std::byte> k;  // [tokens, kv_heads, k_dim]
  std::span<const std::byte> v;  // [tokens, kv_heads, v_dim]; empty: no outputs
  std::span<const float> sinks;  // [query_heads] or empty
  std::span<const DeathVector> vectors;
};

// Of some rows. Vector 0 is the full cache, then those of the input in their order.
struct ScoreFigures {
  std::vector<double> sums;   // [1 + vectors, query_heads, rows] of exp(logit - max) that is read
  std::vector<float> errors;  // the same shape: relative output error, 0 where not asked for
  std::vector<float> max;     // [query_heads, rows] of the logits
};

class ScoreLayer {
 public:
  virtual ~ScoreLayer() = default;
  // As many rows at a time as the memory allows; one at least.
  [[nodiscard]] virtual std::int64_t most_rows() const = 0;
  // rows: ascending, at most most_rows(). Errors: DeviceError.
  virtual void run(std::span<const std::int64_t> rows, ScoreFigures& out) = 0;
};

// Errors: DeviceError, also for a shape that the device has no kernel for.
using LoadScores = std::unique_ptr<ScoreLayer> (*)(const ScoreInput& input);

}  // namespace kvspan::gpu_replay
