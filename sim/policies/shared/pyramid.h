// SPDX-License-Identifier: Apache-2.0
// Shared by pyramidkv and pyramid: budgets that fall linearly from the first layer to the last.
#pragma once

#include <optional>
#include <vector>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

[[nodiscard]] std::vector<Parameter> pyramid_parameters();
// The newest `window` entries are reserved in every layer; size: what the policy's `budget` says.
[[nodiscard]] BudgetSlot pyramid_shape(const Arguments& arguments, TokenCount window,
                                       std::optional<Amount> size);

}  // namespace kvspan::policies
