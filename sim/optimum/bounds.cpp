// SPDX-License-Identifier: Apache-2.0
#include "sim/optimum/bounds.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace kvspan::optimum {
namespace {

// Moves the `count` largest to the front; how many those are.
template <class T, class Order>
std::size_t select_best(std::vector<T>& all, std::int64_t count, const Order& order) {
  const auto best = std::min(index(count), all.size());
  if (best > 0 && best < all.size()) {
    std::nth_element(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(best - 1), all.end(),
                     order);
  }
  return best;
}

// Entries in the order of the passes that bear them: pooled heads are not.
std::vector<std::vector<std::int32_t>> by_birth(const Values& values) {
  std::vector<std::vector<std::int32_t>> born(index(values.passes()));
  for (int entry = 0; entry < values.entries(); ++entry)
    born[index(values.born(entry))].push_back(entry);
  return born;
}

}  // namespace

Plan belady_mass(const Values& values, const Capacities& capacities) {
  Plan plan(index(values.entries()), values.passes() - 1);
  const auto born = by_birth(values);
  std::vector<std::int32_t> alive;
  for (int k = 0; k + 1 < values.passes(); ++k) {
    alive.insert(alive.end(), born[index(k)].begin(), born[index(k)].end());
    const auto to_come = [&](std::int32_t entry) {
      const std::span<const Mass> gains = values.gains(entry);
      return gains.back() - gains[index(k - values.born(entry))];
    };
    const std::size_t stay =
        select_best(alive, capacities[index(k)], [&](std::int32_t a, std::int32_t b) {
          return std::pair(to_come(b), a) < std::pair(to_come(a), b);
        });
    for (std::size_t i = stay; i < alive.size(); ++i) plan[index(alive[i])] = k;
    alive.resize(stay);
  }
  return plan;
}

Mass optimum_select(const Values& values, const Capacities& capacities) {
  const auto born = by_birth(values);
  std::vector<std::int32_t> older;
  std::vector<Mass> next;
  Mass sum = 0;
  for (int k = 0; k + 1 < values.passes(); ++k) {
    older.insert(older.end(), born[index(k)].begin(), born[index(k)].end());
    next.clear();
    for (const int entry : older) {
      const auto at = values.gains(entry).subspan(index(k - values.born(entry)), 2);
      next.push_back(at[1] - at[0]);
    }
    const std::size_t read = select_best(next, capacities[index(k)], std::greater<>());
    sum = std::accumulate(next.begin(), next.begin() + static_cast<std::ptrdiff_t>(read), sum);
  }
  return sum;
}

}  // namespace kvspan::optimum
