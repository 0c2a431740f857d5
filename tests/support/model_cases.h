// SPDX-License-Identifier: Apache-2.0
// Models that several tests look at: one of one head, and those a config.json describes.
#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/models/model_config.h"
#include "sim/models/model_geometry.h"

namespace kvspan::test {

[[nodiscard]] inline Geometry one_head(std::int64_t prompt, std::int64_t generated,
                                       std::int64_t chunk) {
  return geometry_of(ModelGeometry{"one head", 1, 1, 1, 4, 4, {0}, {}}, prompt, generated, chunk,
                     2);
}

[[nodiscard]] inline ModelGeometry read(const nlohmann::json& config) {
  return read_model_config(config.dump(), "config.json");
}

// Why a config is refused.
[[nodiscard]] inline std::string refusal(const nlohmann::json& config) {
  try {
    (void)read(config);
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "accepted";
}

}  // namespace kvspan::test
