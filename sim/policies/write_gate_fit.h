// SPDX-License-Identifier: Apache-2.0
// Write-Gated KV's learned gates: a model of each (layer, KV head) on [rms(k before rotary);
// rms(k)], fitted to tell the entries that a row behind their window attends to.
#pragma once

#include <memory>
#include <vector>

#include "sim/policies/shared/entry_values.h"
#include "sim/policies/shared/fitted.h"

namespace kvspan::policies {

// The value that exactly the share `rate` of the values exceeds, if no two are equal. Reorders
// them.
[[nodiscard]] double value_exceeded_by(std::vector<float>& values, double rate);

// Gates by a model for each (layer, KV head): of a file, or fitted on rows [0, fit_end) of all
// layers of `trace` at construction.
class LearnedGates {
 public:
  LearnedGates(const FitSource& source, const Geometry& geometry);
  // Log odds, or what else the models give, of all tokens of one stored layer.
  [[nodiscard]] HeadValues of_layer(int layer) const;

 private:
  const Trace& trace_;
  std::vector<std::vector<Regressor>> models_;  // [layers][kv_heads]
};

}  // namespace kvspan::policies
