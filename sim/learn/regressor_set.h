// SPDX-License-Identifier: Apache-2.0
// Regressors of all heads, as a safetensors file that says what they were fitted on.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "sim/learn/regression.h"
#include "sim/trace/safetensors.h"

namespace kvspan {

// One for each (layer, head), and where they come from.
struct RegressorSet {
  std::string scorer;                              // the policy they are for
  std::vector<int> layer_ids;                      // [layers] of the model they were fitted on
  std::vector<std::vector<Regressor>> regressors;  // [layers][heads]; all of the same shape
  Metadata about;  // method, features, label, lambda, seed, traces, sha256, sizes, scores
  void save(const std::filesystem::path& path) const;
  // Errors: TraceError naming the file and what it lacks.
  [[nodiscard]] static RegressorSet load(const std::filesystem::path& path);
  // Those of a layer of the model. Errors: ConfigError when the set lacks it, or its heads or
  // width are not these.
  [[nodiscard]] const std::vector<Regressor>& layer(int model_layer, std::size_t heads,
                                                    std::size_t width) const;
};

}  // namespace kvspan
