// SPDX-License-Identifier: Apache-2.0
// Internal to metrics.cpp: KV bytes of one layer, row by row, in one storage layout.
// Definitions: the README, "What is measured", and metrics.h.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "sim/ledger/metrics.h"

namespace kvspan {

// What the layers of a run have in common.
struct LayerGeometry {
  RowIndex tokens = 0;
  int heads = 0;
  int query_heads = 0;
  std::int64_t entry_bytes = 0;  // device bytes of a newborn
  std::int64_t newborn = 1;      // device entries that a birth adds: 0 if born on the host
};

// One stored head. State x is the one before the newborn of row x: entries born before row x, less
// those dead at x or earlier. It is the state before a pass that begins at x, and the one after the
// eviction of a pass that ends there.
struct HeadRows {
  std::span<const std::int64_t> entries;  // [tokens] on the device
  std::span<const std::int64_t> bytes;    // [tokens] theirs
  std::span<const RowIndex> gone;  // [tokens] row from which a token is off the device for good
};

// KV bytes of a layer: in state x, and during row x (that state and the newborns of the row).
struct LayerRows {
  std::vector<std::int64_t> before, during;  // [tokens]
};

// Collects the heads of one layer, then hands over the rows and starts afresh.
class LayerLayout {
 public:
  explicit LayerLayout(const LayerGeometry& geometry) : geometry_(geometry) {}
  virtual ~LayerLayout() = default;
  LayerLayout(const LayerLayout&) = delete;
  LayerLayout& operator=(const LayerLayout&) = delete;

  virtual void add_head(const HeadRows& head) = 0;
  // out.before and out.during are [tokens] and overwritten.
  virtual void finish(LayerRows& out) = 0;

 protected:
  LayerGeometry geometry_;
};

[[nodiscard]] std::unique_ptr<LayerLayout> make_layer_layout(const Layout& layout,
                                                             const LayerGeometry& geometry);

// True if an eviction copies the survivors to a place of their own. Blocks are freed where they
// are, and a mask moves nothing.
[[nodiscard]] bool copies_survivors(const Layout& layout);

}  // namespace kvspan
