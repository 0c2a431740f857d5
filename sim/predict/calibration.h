// SPDX-License-Identifier: Apache-2.0
// Predictions for policies whose occupancy depends on content: from what a replay measured.
#pragma once

#include <map>
#include <string>

#include "sim/policy/registry.h"

namespace kvspan {

// What a replay measured of a policy whose occupancy depends on content.
struct Occupancies {
  double kept = 1;   // of the prompt's entries, share that stays after its end
  double grows = 1;  // entries a head that stay of each decode row
};
// From the result file of a replay (kvspan run --out): occupancies by canonical specification.
// Errors: ConfigError when the file is not such a result.
[[nodiscard]] std::map<std::string, Occupancies> read_occupancies(const std::string& result_file);
// The policy with its content-dependent rules replaced by what was measured; exact only as far as
// the measured trace is typical, and its notes say so.
[[nodiscard]] Policy calibrated(Policy policy, const Occupancies& measured,
                                const std::string& result_file);

}  // namespace kvspan
