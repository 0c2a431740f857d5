// SPDX-License-Identifier: Apache-2.0
// What a policy is bound to: the geometry of a trace or of a model, and of one of its layers.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace kvspan {

class Memo;
class Trace;

// Geometry of one stored layer. heads is the head axis of ledger and decisions: kv_heads, or
// query_heads when a policy stores one set per query head (group=none).
struct LayerShape {
  int layer = 0;  // index in the trace
  int layers = 0;
  int model_layer = 0;  // index in the model
  int model_layers = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int heads = 0;
  int k_dim = 0;
  int v_dim = 0;
  [[nodiscard]] int group() const { return query_heads / heads; }  // query heads per stored head
  // The KV head whose vectors a stored head, or a query head, reads.
  [[nodiscard]] int kv_head(int stored_head) const { return stored_head * kv_heads / heads; }
  [[nodiscard]] int kv_head_of_query(int query_head) const {
    return query_head * kv_heads / query_heads;
  }
};

// What a recipe is bound to: the geometry of a trace (or of a model, for the analytic model).
struct Geometry {
  int model_layers = 0;
  std::vector<int> layer_ids;  // [stored layers] index in the model
  int query_heads = 0;
  int kv_heads = 0;
  int k_dim = 0;
  int v_dim = 0;
  std::int64_t tokens = 0;                   // N
  std::int64_t prompt = 0;                   // n
  std::int64_t evict_point = 0;              // n'
  std::int64_t chunk = 0;                    // 0: one prefill pass
  std::int64_t kv_bytes = 2;                 // per element
  std::uint64_t seed = 0;                    // --seed: of every policy that does not give its own
  std::vector<std::int64_t> sliding_window;  // [stored layers], 0: none; empty: none at all
  const Trace* trace = nullptr;              // null in the analytic model
  std::shared_ptr<Memo> memo;                // of the policies of one replay; may be null
  [[nodiscard]] int layers() const { return static_cast<int>(layer_ids.size()); }
  [[nodiscard]] std::int64_t entry_bytes() const { return (k_dim + v_dim) * kv_bytes; }
  [[nodiscard]] LayerShape shape(int layer, bool per_query_head) const {
    return {layer,       layers(), layer_ids[static_cast<std::size_t>(layer)], model_layers,
            query_heads, kv_heads, per_query_head ? query_heads : kv_heads,    k_dim,
            v_dim};
  }
};

}  // namespace kvspan
