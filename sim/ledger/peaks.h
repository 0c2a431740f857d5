// SPDX-License-Identifier: Apache-2.0
// The peak: the instant at which a run holds most, in one layout.
#pragma once

#include <cstdint>
#include <vector>

#include "sim/ledger/layouts.h"
#include "sim/ledger/ledger.h"
#include "sim/ledger/lives.h"

namespace kvspan {

// A peak is one instant: kv and overhead are the parts of total at `row`, the last row of the pass
// (before the eviction at its end) of the first maximum. prefill and decode are the maxima of the
// total in each phase (0 if a phase has no rows).
struct PeakBytes {
  std::int64_t total = 0, kv = 0, overhead = 0, prefill = 0, decode = 0;
  RowIndex row = 0;
  bool operator==(const PeakBytes&) const = default;
};

// An instant of a run: KV bytes, and the entries that overhead is charged for.
struct Instant {
  std::int64_t kv = 0, entries = 0;
  Instant& operator+=(const Instant& other) {
    kv += other.kv;
    entries += other.entries;
    return *this;
  }
  [[nodiscard]] std::int64_t entry_total(const Charge& charge) const {
    return kv + charge.entry * entries;
  }
};

// The layerwise peak of one prefill pass, layer by layer and without a list of layers:
//
//   max_l( sum_{i<l} after_i + end_l + copy_l + sum_{i>l} past_i )
//
// A further layer adds its past to the best so far, and competes with what the layers before it
// hold after their evictions. Where all layers attend before any is cut (budgets coupled over
// layers), the layers above hold the pass already: end_i takes the place of past_i.
class LayerwisePass {
 public:
  void add_layer(const Instant& past, const Instant& end_and_copy, const Instant& after,
                 const Charge& charge);
  [[nodiscard]] const Instant& best() const { return best_; }

 private:
  bool first_ = true;
  Instant best_, after_;
};

// A run in one layout: KV bytes summed over layers, and the peak of them.
class LayoutPeak {
 public:
  LayoutPeak(const Ledger& ledger, const Layout& layout, bool layerwise);
  // Adds the ledger's next layer. Returns the peak of the layer alone, without Charge::once.
  //   kv, entries: its KV bytes and its device entries, row by row
  //   lives: what has begun that layer and seen all of its heads
  std::int64_t add_layer(const Lives& lives, const LayerRows& kv, const LayerRows& entries);

  // What follows: once all layers are added.
  [[nodiscard]] const std::vector<std::int64_t>& kv() const { return kv_; }  // [tokens], in a row
  [[nodiscard]] PeakBytes peak(const std::vector<std::int64_t>& overhead) const;  // of each row

 private:
  const Ledger* ledger_;
  bool copies_;  // survivors, when a layer evicts
  std::vector<std::int64_t> kv_;
  std::vector<LayerwisePass> layerwise_;  // [prefill passes], or empty
};

}  // namespace kvspan
