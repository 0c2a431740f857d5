// SPDX-License-Identifier: Apache-2.0
// Proof that a plan is best, by arithmetic that knows nothing of how it was found.
//
// Let a slot after pass k cost lambda_k >= 0. Then entry i by itself earns at most
//   e_i = max over q of gains(i)[q - p_i] - lambda_(p_i) - ... - lambda_(q - 1)     (q = p_i: 0)
// and whatever plan holds at most c_k entries after pass k gains at most
//   sum of e_i + sum of lambda_k c_k,
// because it pays for no more slots than there are. A plan that gains as much is best.
#pragma once

#include <span>
#include <string>

#include "sim/optimum/values.h"

namespace kvspan::optimum {

// That sum. REQUIRES: prices [K - 1] of at least 0.
[[nodiscard]] Mass dual_bound(const Values& values, const Capacities& capacities,
                              std::span<const Mass> prices);

// What is wrong with the claim that `plan` is best, "" if it is: an entry that dies before it is
// born, more entries after a pass than there are slots, a price below 0, or a bound above the gain.
[[nodiscard]] std::string why_not_best(const Values& values, const Capacities& capacities,
                                       const Plan& plan, std::span<const Mass> prices);

}  // namespace kvspan::optimum
