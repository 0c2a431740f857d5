// SPDX-License-Identifier: Apache-2.0
// Stores of blocks of equal slots, each as large as an entry when it is born.
#pragma once

#include <vector>

#include "gpu_replay/pool/layer_store.h"

namespace kvspan::gpu_replay {

// What they share: block tables, and which entry lies in which slot of its head. With blocks that
// all heads share, slot s of head h is part h of block s / size; else each head has a table.
class BlockStore : public LayerStore {
 public:
  ~BlockStore() override;
  // An entry takes a slot where it counts as one.
  [[nodiscard]] bool there(int representation) const override;
  void change(int head, TokenIndex token, int representation) override;
  [[nodiscard]] std::optional<Address> find(int head, TokenIndex token, int copy) const override;
  [[nodiscard]] std::int64_t table_entries() const override;
  [[nodiscard]] HeadTable table_of(int head) const override;

 protected:
  BlockStore(const PoolShape& shape, ArenaSet& arenas, std::int64_t size, bool per_layer);

  static constexpr std::int32_t kNone = -1;
  struct Head {
    std::vector<std::int32_t> slot_of;  // [tokens] or kNone
    std::vector<TokenIndex> token_at;   // [slots] or kNone
    std::int64_t live = 0;              // slots with an entry
    std::int64_t payload = 0;
  };
  [[nodiscard]] std::vector<BlockArena::Block>& table(int head) {
    return tables_[per_layer_ ? 0 : index(head)];
  }
  // Makes blocks until there are `slots` slots. Errors: OutOfMemory.
  void extend(int head, std::int64_t slots);
  void free_block(BlockArena::Block block) { arena_->free(block); }
  // Puts an entry where nothing lies. REQUIRES: the block is there.
  void put(int head, TokenIndex token, std::int32_t slot, int representation);
  // Leaves a hole.
  void take(int head, TokenIndex token);
  void move_slot(int head, std::int32_t from, std::int32_t to);
  [[nodiscard]] Address slot_address(int head, std::int32_t slot) const;
  // Of all blocks; `tail` is what nothing was put into yet.
  [[nodiscard]] Usage usage_of(std::int64_t tail_slots) const;

  std::int64_t size_;  // tokens of a block
  bool per_layer_;
  std::int64_t slot_bytes_;
  std::vector<Head> heads_;

 private:
  BlockArena* arena_;                                   // null: slots have no bytes
  std::vector<std::vector<BlockArena::Block>> tables_;  // [heads or 1], kNone: freed
  std::vector<int> held_as_;                            // [heads, tokens]
};

// Blocks filled in order of birth, which no entry leaves for another. Slot = token.
class PagedStore final : public BlockStore {
 public:
  PagedStore(const PoolShape& shape, ArenaSet& arenas, std::int64_t size, bool frees);
  void append(TokenIndex token) override;
  void place(int head, TokenIndex token, int representation) override;
  void remove(int head, TokenIndex token, bool returns) override;
  void settle(bool /*pass_ends*/) override {}
  [[nodiscard]] Usage usage() const override;

 private:
  // Frees the block of a slot whose last entry has left for good.
  void drop_if_empty(int head, std::int64_t block);
  bool frees_;
  std::int64_t born_ = 0;
  std::vector<std::vector<std::int32_t>> waiting_;  // [tables][blocks] slots not gone for good
};

// Blocks without holes.
class CompactStore final : public BlockStore {
 public:
  CompactStore(const PoolShape& shape, ArenaSet& arenas);
  void append(TokenIndex token) override;
  void place(int head, TokenIndex token, int representation) override;
  void remove(int head, TokenIndex token, bool returns) override;
  void settle(bool pass_ends) override;
  [[nodiscard]] Usage usage() const override;

 private:
  void fill_holes(int head);
};

// Blocks that all heads share; slots stay where they are until a whole block can leave.
class OpenvinoStore final : public BlockStore {
 public:
  OpenvinoStore(const PoolShape& shape, ArenaSet& arenas);
  void append(TokenIndex token) override;
  void place(int head, TokenIndex token, int representation) override;
  void remove(int head, TokenIndex token, bool returns) override;
  void settle(bool pass_ends) override;
  [[nodiscard]] Usage usage() const override;

 private:
  // The blocks of the middle with the fewest entries, ascending.
  [[nodiscard]] std::vector<std::int64_t> emptiest(std::int64_t count) const;
  void drop(const std::vector<std::int64_t>& blocks);
  std::int32_t held_ = 0;  // tokens, in every head
};

}  // namespace kvspan::gpu_replay
