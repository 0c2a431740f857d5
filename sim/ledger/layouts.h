// SPDX-License-Identifier: Apache-2.0
// Storage layouts: their names, and the KV bytes of one layer, row by row, in one of them.
// Definitions: metrics.h.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "sim/ledger/lives.h"

namespace kvspan {

struct Layout {
  enum class Kind : std::uint8_t { ideal, query_head, padded, paged, openvino, masked };
  Kind kind = Kind::ideal;
  std::int64_t block_size = 16;  // tokens; paged and openvino only
  bool per_layer = false;        // paged: a slot is dead when all heads of the layer dropped it
  bool compact = false;          // paged: blocks hold ceil(n / block), as if compacted
};
// Errors: ConfigError on an unknown layout, naming the nearest.
[[nodiscard]] Layout parse_layout(const std::string& name);

// "ideal", "query_head", "padded", "paged16_per_head", "paged16_per_layer", both with "_compact",
// "openvino" (blocks of 32 tokens, as on a CPU), "masked". parse_layout also takes other block
// sizes, "paged32_per_head", "openvino16".
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
  std::int64_t entry_bytes = 0;    // device bytes of a newborn
  std::int64_t newborn = 1;        // device entries that a birth adds: 0 if born on the host
  std::span<const RowIndex> ends;  // of the passes, ascending
};

// Tokens that OpenVINO's cache holds after a pass that leaves it with `held`, where the policy's
// longest head holds `longest`. The cache is a start, an evictable middle and a recent area, each
// of whole blocks, and its limit a multiple of the block: the least that takes the policy's
// entries. Only whole blocks leave, the middle's, so that it may exceed the limit by a block less
// one token.
// Source: OpenVINO GenAI, CacheEvictionConfig and CacheEvictionAlgorithm::evict_logical_blocks.
[[nodiscard]] std::int64_t openvino_held(std::int64_t held, std::int64_t longest,
                                         std::int64_t block_size);

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
