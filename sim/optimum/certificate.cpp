// SPDX-License-Identifier: Apache-2.0
#include "sim/optimum/certificate.h"

#include <algorithm>

#include <fmt/format.h>

namespace kvspan::optimum {

Mass dual_bound(const Values& values, const Capacities& capacities, std::span<const Mass> prices) {
  Mass bound = 0;
  for (std::size_t k = 0; k < prices.size(); ++k) bound += prices[k] * capacities[k];
  for (int entry = 0; entry < values.entries(); ++entry) {
    Mass best = 0;
    Mass paid = 0;
    const std::span<const Mass> gains = values.gains(entry);
    for (std::size_t j = 1; j < gains.size(); ++j) {
      paid += prices[index(values.born(entry)) + j - 1];
      best = std::max(best, gains[j] - paid);
    }
    bound += best;
  }
  return bound;
}

std::string why_not_best(const Values& values, const Capacities& capacities, const Plan& plan,
                         std::span<const Mass> prices) {
  for (int entry = 0; entry < values.entries(); ++entry) {
    if (plan[index(entry)] < values.born(entry) || plan[index(entry)] >= values.passes()) {
      return fmt::format("entry {} of pass {} dies at the end of pass {} of {}", entry,
                         values.born(entry), plan[index(entry)], values.passes());
    }
  }
  const Capacities used = held(values, plan);
  for (std::size_t k = 0; k < used.size(); ++k) {
    if (used[k] > capacities[k])
      return fmt::format("after pass {} there are {} entries in {} slots", k, used[k],
                         capacities[k]);
    if (prices[k] < 0) return fmt::format("a slot after pass {} costs {}", k, prices[k]);
  }
  const Mass gain = gain_of(values, plan);
  const Mass bound = dual_bound(values, capacities, prices);
  if (gain == bound) return "";
  return fmt::format("the plan gains {}, and the bound is {}", gain, bound);
}

}  // namespace kvspan::optimum
