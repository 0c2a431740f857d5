// SPDX-License-Identifier: Apache-2.0
// The kinds that the catalogue sorts methods into.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvspan {

enum class MethodKind : std::uint8_t {
  baseline,
  recency_eviction,
  eviction,
  post_fill_eviction,
  head_budget,
  layer_budget,
  budget_shape,
  admission,
  selection,
  offload,
  prefill_sparsity,
  quantisation,
  mixed_precision,
  channel_pruning,
  merging,
  external,
  wrapper,
};

// As tables and files write it: "post-fill eviction".
[[nodiscard]] std::string_view text_of(MethodKind kind);

// Of a merged recipe: "head budget + eviction".
[[nodiscard]] std::string text_of(const std::vector<MethodKind>& kinds);

// A budget that is spread over another policy's entries: adakv(snapkv) means adakv+snapkv.
[[nodiscard]] bool spreads_a_budget(MethodKind kind);

}  // namespace kvspan
