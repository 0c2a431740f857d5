// SPDX-License-Identifier: Apache-2.0
// The reader of a Hugging Face config.json.
#pragma once

#include <string>

#include "sim/models/model_geometry.h"

namespace kvspan {

// The text of a config.json; `where` names it in errors.
// Errors: ConfigError naming the field, what was found and what was expected.
[[nodiscard]] ModelGeometry read_model_config(const std::string& text, const std::string& where);

}  // namespace kvspan
