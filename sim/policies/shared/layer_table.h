// SPDX-License-Identifier: Apache-2.0
// Shared by policies: a number per (layer, head, token) from a file of the user.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/policy/recipe.h"

namespace kvspan::policies {

// Reads a float tensor [layers, heads, tokens or fewer dimensions] of an external file and picks the
// trace's layers: the file holds the stored layers, or all layers of the model.
//   returns [stored layers][rest], rest flattened. Errors: ConfigError naming file, tensor and shape.
struct LayerTable {
  std::int64_t heads = 0;
  std::int64_t tokens = 0;
  std::vector<std::vector<double>> layers;
};
[[nodiscard]] LayerTable read_layer_table(const std::string& file,
                                          const std::vector<std::string>& tensors,
                                          const Geometry& geometry, const std::string& policy);

}  // namespace kvspan::policies
