// SPDX-License-Identifier: Apache-2.0
// The features of an entry that ForesightKV's score looks at.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <vector>

#include "sim/policies/shared/fitted.h"

namespace kvspan::policies {

inline constexpr std::size_t kStats = 8;  // of an entry, for each query head of the group

// Statistics of one query head over one interval, [entries].
struct IntervalStats {
  std::array<std::vector<float>, 6> values;  // max, min, sum, last 16, last 8, last 32
  RowIndex interval;
  IntervalStats(std::size_t entries, RowIndex rows) : interval(rows) {
    for (auto& v : values) v.assign(entries, 0.0F);
    values[1].assign(entries, std::numeric_limits<float>::infinity());
  }
  // Entry i received p; `left`: rows of the interval from this one on. Earlier rows, which the
  // first decision looks at, add to the sum alone.
  void add(std::size_t i, float p, RowIndex left) {
    values[2][i] += p;
    if (left > interval) return;
    values[0][i] = std::max(values[0][i], p);
    values[1][i] = std::min(values[1][i], p);
    if (left <= 16) values[3][i] += p;
    if (left <= 8) values[4][i] += p;
    if (left <= 32) values[5][i] += p;
  }
};

// Sums of the interval's sums of one query head so far, plain and decayed by 0.9 an interval.
struct RunningSums {
  std::vector<float> plain, decayed;  // [tokens]
  // The interval gave `sum` to the token.
  void add(std::size_t token, float sum) {
    plain[token] += sum;
    decayed[token] = 0.9F * decayed[token] + sum;
  }
};

}  // namespace kvspan::policies
