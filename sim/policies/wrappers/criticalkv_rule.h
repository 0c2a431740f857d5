// SPDX-License-Identifier: Apache-2.0
// By how much values move a layer's output: norms of projected values.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "sim/policies/shared/groups.h"
#include "sim/policies/shared/whole_trace.h"
#include "sim/policy/registry.h"

namespace kvspan::policies {

// Wo of one stored layer, [query_heads * v_dim] rows of [hidden].
struct OutputProjection {
  struct Matrix;
  std::shared_ptr<const Matrix> matrix;  // null: the identity
};

// ||Wo v||_1 of every entry, taken when first asked for. One object serves all layers of a policy.
class ValueNorms {
 public:
  ValueNorms(std::function<OutputProjection(int layer)> load, int layers)
      : load_(std::move(load)), layers_(index(layers)) {}
  // Norms of all tokens so far of one stored head; out [entries].
  void of(const View& view, int head, std::span<const TokenIndex> entries, std::span<double> out);

 private:
  struct Layer {
    std::mutex mutex;
    OutputProjection wo;
    std::vector<std::vector<double>> known;  // [heads][tokens so far]
  };

  std::function<OutputProjection(int)> load_;
  std::vector<Layer> layers_;
};

// Finds the projections of all stored layers now, reads them when they are needed.
// Errors: TraceError naming what `from` lacks.
[[nodiscard]] std::function<OutputProjection(int)> projections(const TensorSet& set,
                                                               const std::string& from,
                                                               const Geometry& geometry);

}  // namespace kvspan::policies
