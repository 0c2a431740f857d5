// SPDX-License-Identifier: Apache-2.0
// The lives of a ledger's entries as what is held in every row: on the device, on the host, read.
//
// An entry held as representation r in the rows [a, b) is two events, +r at a and -r at b; the
// prefix sum of all events up to x, less the newborn of row x, is the state "born before x, not
// dead by x", from which every figure follows:
//
//   state x       before the pass that begins at x, and after the eviction of the pass ending there
//   x + newborn   during row x; for the last row of a pass: its end, before the eviction
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sim/ledger/ledger.h"

namespace kvspan {

struct Held {
  std::int64_t entries = 0, bytes = 0;
  Held& operator+=(const Held& other) {
    entries += other.entries;
    bytes += other.bytes;
    return *this;
  }
};

// What one entry of a representation counts as on the device.
[[nodiscard]] Held on_device(const Representation& r);
// Entries that are on the host only, but the host bytes of copies, too: they take memory there.
[[nodiscard]] Held on_host(const Representation& r);

// Events of a run of rows, [tokens + 1]: what dies at N needs no case of its own.
class Events {
 public:
  explicit Events(RowIndex tokens) : delta_(static_cast<std::size_t>(tokens) + 1) {}
  // Adds (sign 1) or takes back (-1) something held in the rows [from, to).
  void hold(RowIndex from, RowIndex to, const Held& what, std::int64_t sign);
  void add(RowIndex row, const Held& what) { delta_[static_cast<std::size_t>(row)] += what; }
  [[nodiscard]] const Held& at(RowIndex row) const { return delta_[static_cast<std::size_t>(row)]; }
  void clear();

 private:
  std::vector<Held> delta_;
};

// One stored head, as states x (see above).
struct HeadRows {
  std::span<const std::int64_t> entries;  // [tokens] on the device
  std::span<const std::int64_t> bytes;    // [tokens] theirs
  std::span<const RowIndex> gone;  // [tokens] row from which a token is off the device for good
};

// Walks the entries of a ledger head by head. Cost: O(tokens + changes) per head.
class Lives {
 public:
  explicit Lives(const Ledger& ledger);
  // REQUIRES: layers in order; changes of a layer in order of row.
  void begin_layer(int layer);
  // The next head's rows, valid until the next call.
  HeadRows head(int head);

  // True if an entry of the layer's heads so far leaves the device at `row`.
  [[nodiscard]] bool evicts_at(RowIndex row) const {
    return left_[static_cast<std::size_t>(row)] != 0;
  }
  // Of all layers so far.
  [[nodiscard]] const Events& host() const { return host_; }
  [[nodiscard]] const Events& read() const { return read_; }

 private:
  [[nodiscard]] RowIndex last_read(RowIndex token, RowIndex death) const;
  void apply(const Change& change, RowIndex death);

  const Ledger* ledger_;
  int layer_ = 0;
  std::int64_t window_ = 0;
  std::vector<std::vector<const Change*>> by_head_;
  Events host_, read_;  // of the run
  Events device_;       // of one head
  std::vector<char> left_;
  std::vector<int> held_as_;
  std::vector<std::int64_t> entries_, bytes_;
  std::vector<RowIndex> gone_;
};

}  // namespace kvspan
