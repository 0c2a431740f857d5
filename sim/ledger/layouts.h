// SPDX-License-Identifier: Apache-2.0
// Storage layouts: their names, and the KV bytes of one layer, row by row, in one of them.
// Definitions: metrics.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sim/ledger/lives.h"

namespace kvspan {

struct Layout {
  enum class Kind : std::uint8_t { ideal, query_head, padded, paged, masked };
  Kind kind = Kind::ideal;
  std::int64_t block_size = 16;  // tokens, paged only
  bool per_layer = false;        // paged: a slot is dead when all heads of the layer dropped it
  bool compact = false;          // paged: blocks hold ceil(n / block), as if compacted
};
// Errors: ConfigError on an unknown layout, naming the nearest.
[[nodiscard]] Layout parse_layout(const std::string& name);

// "ideal", "query_head", "padded", "paged16_per_head", "paged16_per_layer", both with "_compact",
// "masked". parse_layout also takes other block sizes, "paged32_per_head".
[[nodiscard]] const std::vector<std::string>& standard_layouts();

// True if an eviction copies the survivors to a place of their own. Blocks are freed where they
// are, and a mask moves nothing.
[[nodiscard]] bool copies_survivors(const Layout& layout);

// ---- The bytes of a layer -----------------------------------------------------------------------

// What the layers of a run have in common.
struct LayerGeometry {
  RowIndex tokens = 0;
  int heads = 0;
  int query_heads = 0;
  std::int64_t entry_bytes = 0;  // device bytes of a newborn
  std::int64_t newborn = 1;      // device entries that a birth adds: 0 if born on the host
};

// KV bytes of a layer: in state x (see lives.h), and during row x (that state and the newborns of
// the row).
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

}  // namespace kvspan
