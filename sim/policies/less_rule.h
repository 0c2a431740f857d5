// SPDX-License-Identifier: Apache-2.0
// The states that LESS merges victims into.
#pragma once

#include <cstdint>
#include <memory>

#include "sim/policies/shared/victim_states.h"

namespace kvspan::policies {

struct LessSettings {
  enum class Variant : std::uint8_t { fit, favor, mean, oracle };
  Variant variant = Variant::fit;
  int rank = 8;
  std::uint64_t seed = 0;
  RowIndex tokens = 0;
};
[[nodiscard]] std::unique_ptr<VictimState> make_less_state(const LessSettings& settings,
                                                           const View& view, int head);

}  // namespace kvspan::policies
