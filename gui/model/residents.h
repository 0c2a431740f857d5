// SPDX-License-Identifier: Apache-2.0
// What a run holds at one row, by layer and head and by token.
#pragma once

#include <QString>
#include <cstdint>
#include <functional>
#include <vector>

#include "gui/model/result.h"

namespace kvspan::gui {

// Heads that are looked at: one, those of a layer, or all (-1).
struct HeadScope {
  int layer = -1, head = -1;
  [[nodiscard]] bool holds(int l, int h) const {
    return (layer < 0 || layer == l) && (head < 0 || head == h);
  }
  bool operator==(const HeadScope&) const = default;
};

struct HeadHolding {
  std::int64_t entries = 0;  // on the device
  std::int64_t bytes = 0;    // of them on the device, overhead per entry included, as if ideal
  std::int64_t host_bytes = 0;
  std::int64_t entries_before = 0;  // on the device at the row that it is compared with
  std::int64_t host_entries = 0;    // on the host alone
  HeadHolding& operator+=(const HeadHolding& other);
};

// What is there while `row` attends: entries with token <= row < death.
struct Holdings {
  RowIndex row = 0, since = 0;
  int layers = 0, heads = 0;
  std::vector<HeadHolding> of;  // [layers, heads]
  // Of the tokens up to `row`, in the scope's heads:
  HeadScope scope;
  int scope_heads = 0;
  std::vector<std::int32_t> held_by;       // [row + 1] heads that hold it
  std::vector<std::uint32_t> first, last;  // [row + 1] its first and last death after the row
  [[nodiscard]] const HeadHolding& at(int layer, int head) const {
    return of[static_cast<std::size_t>(layer) * static_cast<std::size_t>(heads) +
              static_cast<std::size_t>(head)];
  }
  [[nodiscard]] HeadHolding layer_sum(int layer) const;
  [[nodiscard]] HeadHolding sum() const;
};

// Without lifetimes: entries of heads_over_time, bytes if all entries cost the same (else 0), and
// no tokens.
// REQUIRES: result.lifetimes or heads_over_time, 0 <= since, row < tokens.
// Cost: O(heads * tokens + changes).
// Errors: TraceError of a damaged file; Interrupted.
[[nodiscard]] Holdings holdings_at(const Result& result, std::size_t run, RowIndex row,
                                   RowIndex since, HeadScope scope,
                                   const std::function<bool()>& cancelled);

// "h2o holds 927 entries in row 1 879, 5.5 % of a full cache, 232 KiB; 12 fewer than in row 511".
[[nodiscard]] QString summary_of(const Holdings& holdings, const QString& label);

}  // namespace kvspan::gui
