// SPDX-License-Identifier: Apache-2.0
// What one run holds at a row beside what another holds.
#pragma once

#include <QString>
#include <cstdint>
#include <functional>
#include <vector>

#include "gui/model/document.h"
#include "gui/model/residents.h"

namespace kvspan::gui {

struct Overlap {
  std::int64_t both = 0, current = 0, baseline = 0;  // held by both, by only one
  // Of what either holds; 1 if nothing is held.
  [[nodiscard]] double jaccard() const;
  Overlap& operator+=(const Overlap& other);
};

// What two runs hold while `row` attends.
struct KeptSets {
  RowIndex row = 0;
  HeadScope scope;
  int layers = 0, heads = 0;
  std::vector<Overlap> of;  // [layers, heads]
  Overlap sum;              // of the scope
  int scope_heads = 0;
  std::vector<std::int32_t> both, current, baseline;  // [row + 1] heads of the scope
  [[nodiscard]] const Overlap& at(int layer, int head) const {
    return of[static_cast<std::size_t>(layer) * static_cast<std::size_t>(heads) +
              static_cast<std::size_t>(head)];
  }
};

// Why kept sets of two runs cannot be compared; empty if they can.
[[nodiscard]] QString why_not_compared(const ShownRun* current, const ShownRun* baseline);

// Where one run stores fewer heads, each of them is compared with all that it stands for.
//   scope  of the heads of the run that stores more
// REQUIRES: why_not_compared() is empty, row < tokens. Errors: as holdings_at().
[[nodiscard]] KeptSets kept_sets(const ShownRun& current, const ShownRun& baseline, RowIndex row,
                                 HeadScope scope, const std::function<bool()>& cancelled);

// The last row in which most entries are held by only one of the two; without lifetimes of both,
// the last row of the current one.
// Cost: O(heads * tokens). Errors: TraceError of a damaged file.
[[nodiscard]] RowIndex telling_row(const ShownRun& current, const ShownRun& baseline);

}  // namespace kvspan::gui
