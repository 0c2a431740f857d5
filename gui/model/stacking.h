// SPDX-License-Identifier: Apache-2.0
// A run's memory in parts that are stacked: by layer, by head class, by state.
#pragma once

#include <QString>
#include <span>
#include <vector>

#include "gui/model/columns.h"
#include "gui/model/document.h"

namespace kvspan::gui {

// The parts of a run's memory, from the bottom to the top.
//
// Where entries are counted, parts by layer and head class are their entries. Of bytes a timeline
// knows only the sum: after overhead, which is a part of its own, they are split in proportion to
// entries, which is exact where all entries cost the same.
class Stacking {
 public:
  Stacking(const ShownRun& shown, Quantity quantity, Stack stack);
  // Why there are no parts; empty if there are.
  [[nodiscard]] const QString& missing() const { return missing_; }
  [[nodiscard]] const std::vector<QString>& names() const { return names_; }
  // The parts' places among all that the stack could have: a part has one colour in every run.
  [[nodiscard]] const std::vector<int>& places() const { return places_; }
  [[nodiscard]] int all_places() const { return all_places_; }
  [[nodiscard]] const QString& note() const { return note_; }  // how bytes were split, or empty
  // Values of the parts in a row.
  //   parts  [names().size()]
  void parts_at(RowIndex row, std::span<double> parts) const;

 private:
  void by_heads(Stack stack);
  void by_state();
  ShownRun shown_;
  Quantity quantity_;
  Measure total_;
  std::vector<int> part_of_head_;  // [layers * heads]; empty: by state
  bool overhead_ = false, host_ = false;
  std::vector<QString> names_;
  std::vector<int> places_;
  int all_places_ = 0;
  QString note_, missing_;
};

// A stack at columns, each at the row of its largest total.
struct SampledStack {
  std::vector<double> x;                  // [points] row
  std::vector<std::vector<double>> tops;  // [parts][points] sums up to and with a part
};
[[nodiscard]] SampledStack sample_stack(const Stacking& stacking, const Measure& total,
                                        const Columns& columns);

}  // namespace kvspan::gui
