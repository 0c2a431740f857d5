// SPDX-License-Identifier: Apache-2.0
// What a row of a score trace lets one say of its retained mass. The trace has the largest
// probabilities of the row, rounded; keys without one share the rest (the residual), and none of
// them has more than the least that is stored. Of the keys that are read (in) and of those that are
// not (out), what they have together lies between
//   least = sum of terms (1 - relative) - rounding of the smallest numbers
//   most  = sum of terms (1 + relative) + keys without a term x the most that one may have
// and, as in + out = total, the mass read / total lies in
//   [max(least(in), total - most(out)), min(most(in), total - least(out))] / total
// where dense rows, which need not add up to one, take in / (in + out) at both ends.
#pragma once

#include "sim/attention/layer_scores.h"
#include "sim/replay/fidelity.h"

namespace kvspan {

// Keys that a row reads, or that it does not.
struct KeyGroup {
  double sum = 0;           // of the terms
  std::int64_t stored = 0;  // keys with a term
  std::int64_t open = 0;    // keys without one
  [[nodiscard]] MassInterval mass(const RowCut& cut) const;
};

// Of the keys [begin, end) that `mask` reads (`read`), or of the others.
[[nodiscard]] KeyGroup group_of(const RowTerms& row, const float* mask, bool read,
                                std::int64_t begin, std::int64_t end);

// Keys [begin, end) are those that the row can read. REQUIRES: a row of a score trace.
[[nodiscard]] MassInterval retained_interval(const RowTerms& row, const float* mask,
                                             std::int64_t begin, std::int64_t end);

}  // namespace kvspan
