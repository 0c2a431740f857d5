// SPDX-License-Identifier: Apache-2.0
// Geometry of a model's KV cache, from a built-in list, a Hugging Face config.json, or a trace.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/recipe.h"

namespace kvspan {

struct ModelGeometry {
  std::string name;
  int layers = 0, query_heads = 0, kv_heads = 0, head_dim = 0, v_head_dim = 0;
  std::vector<int> layer_ids;                // stored layers; all of them unless read from a trace
  std::vector<std::int64_t> sliding_window;  // [stored layers], empty: none
};

// Names of the built-in list.
[[nodiscard]] std::vector<std::string> known_models();

// A name of the list, a path to config.json (or its folder), or a trace.
// Errors: ConfigError naming the missing field, the unsupported architecture, or the nearest name.
[[nodiscard]] ModelGeometry load_model(const std::string& name_or_path);

// The geometry of a run of n prompt and m generated tokens.
[[nodiscard]] Geometry geometry_of(const ModelGeometry& model, std::int64_t prompt,
                                   std::int64_t generated, std::int64_t chunk,
                                   std::int64_t kv_bytes);

}  // namespace kvspan
