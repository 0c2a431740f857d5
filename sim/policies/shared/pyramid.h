// SPDX-License-Identifier: Apache-2.0
// Shared by pyramidkv and pyramid: budgets that fall linearly from the first layer to the last.
#pragma once

#include <optional>
#include <vector>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

[[nodiscard]] std::vector<Parameter> pyramid_parameters();
struct PyramidWindow {
  TokenCount tokens;  // the newest, reserved in every layer
  bool always;        // even where heads with another window share out what the layer gets
};
// size: what the policy's `budget` says.
[[nodiscard]] BudgetSlot pyramid_layers(const Arguments& arguments, PyramidWindow window,
                                        std::optional<Amount> size);

}  // namespace kvspan::policies
