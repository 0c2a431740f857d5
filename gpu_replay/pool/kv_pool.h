// SPDX-License-Identifier: Apache-2.0
// The KV cache of one sequence in the memory of a device: entries are appended, evicted, held
// otherwise, moved together and read, in one of the simulator's layouts. Decisions are not made
// here: a ledger, or a running policy, says what leaves.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "gpu_replay/pool/layer_store.h"

namespace kvspan::gpu_replay {

// What becomes of one entry at the end of a pass.
struct Step {
  static constexpr int kEvicted = -1;
  int head = 0;
  TokenIndex token = 0;
  int representation = kEvicted;
  bool returns = false;  // it leaves the device and comes back later
};

class KvPool {
 public:
  // `arenas` may be shared by pools, and must outlive this one.
  KvPool(PoolShape shape, ArenaSet& arenas);
  ~KvPool();
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  // A token is born in all heads of a layer. REQUIRES: the one after the last. Errors: OutOfMemory;
  // the pool can then be looked at no more, only destroyed.
  void append(int layer, TokenIndex token);
  // In place. `pass_ends`: see LayerStore::settle().
  void apply(int layer, std::span<const Step> steps, bool pass_ends);
  // The same, but that the survivors are copied to a place of their own before what was there is
  // given back; both are there when `between` is called. Errors: as append().
  void apply_by_copy(int layer, std::span<const Step> steps, const std::function<void()>& between);
  // Bytes that the policy keeps beside its entries. Errors: OutOfMemory.
  void set_state(std::int64_t bytes);

  // ---- What is there ----------------------------------------------------------------------------

  [[nodiscard]] const PoolShape& shape() const { return shape_; }
  // Places of every entry: one, or the query heads of a head.
  [[nodiscard]] int copies() const {
    return shape_.layout.kind == Layout::Kind::query_head ? shape_.query_heads / shape_.heads : 1;
  }
  // Of KV, without state.
  [[nodiscard]] const Usage& usage() const { return usage_; }
  [[nodiscard]] std::int64_t state_bytes() const { return state_bytes_; }
  // Entries of the device, as overhead is charged for them.
  [[nodiscard]] std::int64_t entries() const { return entries_; }
  [[nodiscard]] std::int64_t table_entries() const;
  [[nodiscard]] std::int64_t moved() const;
  // Entries that are held, on the device or the host, ascending.
  [[nodiscard]] std::vector<TokenIndex> held(int layer, int head) const;
  // How an entry is held. REQUIRES: it is.
  [[nodiscard]] int held_as(int layer, int head, TokenIndex token) const {
    return state_[place(layer, head, token)];
  }
  [[nodiscard]] std::optional<Address> find(int layer, int head, TokenIndex token,
                                            int copy = 0) const {
    return layers_[index(layer)]->find(head, token, copy);
  }
  [[nodiscard]] HeadTable table_of(int layer, int head) const {
    return layers_[index(layer)]->table_of(head);
  }
  [[nodiscard]] DeviceMemory& memory() const { return arenas_->memory(); }
  // The bytes of an entry, in all its copies. REQUIRES: as many as its representation has.
  // False: it does not lie on the device.
  bool write(int layer, int head, TokenIndex token, std::span<const std::byte> bytes);
  bool read(int layer, int head, TokenIndex token, std::span<std::byte> bytes, int copy = 0) const;

 private:
  static constexpr std::int16_t kNotHeld = -1;
  [[nodiscard]] std::size_t place(int layer, int head, TokenIndex token) const {
    return (index(layer) * index(shape_.heads) + index(head)) * index(shape_.tokens) + index(token);
  }
  [[nodiscard]] std::int64_t counts(int representation) const;
  // Of the entry alone; the store is told by the caller.
  void record(int layer, const Step& step);
  // The layer's usage is taken anew.
  void recount(int layer);

  PoolShape shape_;
  ArenaSet* arenas_;
  std::vector<std::unique_ptr<LayerStore>> layers_;
  std::vector<std::int16_t> state_;  // [layers, heads, tokens] representation, or kNotHeld
  std::vector<Usage> layer_usage_;
  Usage usage_;
  std::int64_t entries_ = 0;
  std::int64_t moved_ = 0;  // of stores that are no more
  // State lies in small blocks, so that pools share granules for it, too.
  static constexpr std::int64_t kStateBlock = 4096;
  std::vector<BlockArena::Block> state_blocks_;
  std::int64_t state_bytes_ = 0;
};

}  // namespace kvspan::gpu_replay
