// SPDX-License-Identifier: Apache-2.0
// The built-in list of models.
#pragma once

#include <span>
#include <string_view>

namespace kvspan {

struct KnownModel {
  std::string_view name;
  std::string_view config;  // the fields of its config.json that sizes depend on
};

[[nodiscard]] std::span<const KnownModel> known_model_configs();

}  // namespace kvspan
