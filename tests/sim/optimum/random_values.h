// SPDX-License-Identifier: Apache-2.0
// Random instances of the optimum's tests.
#pragma once

#include <algorithm>
#include <random>
#include <span>
#include <vector>

#include "sim/optimum/values.h"

namespace kvspan::optimum {

using Random = std::mt19937;

inline int draw(Random& random, int below) {
  return static_cast<int>(random() % static_cast<unsigned>(below));
}

// Entries of the rows of `ends`, with gains that grow by 0 to `most` a pass.
inline Values random_values(Random& random, const std::vector<RowIndex>& ends, int most) {
  std::vector<RowIndex> births;
  for (RowIndex row = 0; row < ends.back(); ++row) births.push_back(row);
  Values values(ends, births);
  for (int entry = 0; entry < values.entries(); ++entry) {
    const std::span<Mass> gains = values.gains(entry);
    for (std::size_t j = 1; j < gains.size(); ++j)
      gains[j] = gains[j - 1] + (draw(random, 3) == 0 ? 0 : draw(random, most + 1));
  }
  return values;
}

// Passes of one to `longest` rows, `rows` in all.
inline std::vector<RowIndex> random_passes(Random& random, RowIndex rows, int longest) {
  std::vector<RowIndex> ends;
  for (RowIndex end = 0; end < rows;)
    ends.push_back(end = std::min<RowIndex>(rows, end + 1 + draw(random, longest)));
  return ends;
}

}  // namespace kvspan::optimum
