// SPDX-License-Identifier: Apache-2.0
// Shared by policies that read numbers of every layer, head and token from an external file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

// Reads a float tensor [layers, heads, tokens or fewer dimensions] of an external file and picks
// the trace's layers: the file holds the stored layers, or all layers of the model.
//   returns [stored layers][rest], rest flattened. Errors: ConfigError naming file, tensor and
//   shape.
struct LayerTable {
  std::int64_t heads = 0;
  std::int64_t tokens = 0;
  std::vector<std::vector<double>> layers;
};
[[nodiscard]] LayerTable read_layer_table(const std::string& file,
                                          const std::vector<std::string>& tensors,
                                          const Geometry& geometry, const std::string& policy);

// Ranks entries by the numbers of a table, which are known at birth.
[[nodiscard]] Scoring table_scoring(const std::shared_ptr<const LayerTable>& table,
                                    const Geometry& geometry);

}  // namespace kvspan::policies
