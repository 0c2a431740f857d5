// SPDX-License-Identifier: Apache-2.0
// What a layer does to rows beside their attention: norms, projections, rotation, MLP. Rows need
// not be neighbours: a prompt's wave, or one row each of many sequences.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

// `rows` rows at positions first, first + 1, ...
struct PositionRun {
  std::int64_t first = 0, rows = 0;
};

class LayerMath {
 public:
  // y [rows, ldy] = x [rows, columns] W^T + bias
  using Dense = std::function<void(const float* x, std::int64_t rows, const WeightMatrix& w,
                                   const std::vector<float>& bias, float* y, std::int64_t ldy)>;
  // `spec` outlives this.
  LayerMath(const ModelSpec& spec, Dense dense) : spec_(spec), dense_(std::move(dense)) {}

  // q [rows, q_width], k and v [rows, kv_width] of hidden [rows, hidden]; the rows are those of
  // `positions`, one run after the other. Errors: CheckpointError unless they are finite.
  struct Projected {
    float *q, *k, *v;
  };
  void project(const LayerWeights& w, int layer, std::span<const PositionRun> positions,
               const float* hidden, const Projected& out);
  // Output projection of attended [rows, q_width] and MLP, each added to hidden [rows, hidden].
  // Errors: as above.
  void finish(const LayerWeights& w, int layer, const float* attended, std::int64_t rows,
              float* hidden);
  // logits [rows, vocabulary] of hidden [rows, hidden]. Errors: as above.
  void head(const Checkpoint& checkpoint, const float* hidden, std::int64_t rows, float* logits);

 private:
  void norm_rows(const float* x, const std::vector<float>& weight, std::int64_t rows);
  void finish_heads(float* rows, std::span<const PositionRun> positions, int heads,
                    const std::vector<float>& norm) const;
  void add_to(float* hidden, std::int64_t rows) const;

  const ModelSpec& spec_;
  Dense dense_;
  std::vector<float> normed_, gate_, up_;  // [rows, width]
};

}  // namespace kvspan::tracegen
