// SPDX-License-Identifier: Apache-2.0
// Stores that know the size of every entry: no blocks of equal slots.
#pragma once

#include <vector>

#include "gpu_replay/pool/layer_store.h"

namespace kvspan::gpu_replay {

// A slot of its own size for every entry, in `copies` places side by side.
class EntryStore final : public LayerStore {
 public:
  EntryStore(const PoolShape& shape, ArenaSet& arenas, int copies);
  ~EntryStore() override;
  [[nodiscard]] bool there(int representation) const override {
    return bytes_of(representation) > 0;
  }
  void append(TokenIndex token) override;
  void place(int head, TokenIndex token, int representation) override;
  void change(int head, TokenIndex token, int representation) override;
  void remove(int head, TokenIndex token, bool returns) override;
  void settle(bool /*pass_ends*/) override {}
  [[nodiscard]] std::optional<Address> find(int head, TokenIndex token, int copy) const override;
  [[nodiscard]] Usage usage() const override;
  [[nodiscard]] std::int64_t table_entries() const override { return entries_; }

 private:
  struct Slot {
    std::int64_t bytes = 0;  // 0: nothing is there
    BlockArena::Block block = 0;
  };
  [[nodiscard]] Slot& slot(int head, TokenIndex token) {
    return slots_[index(head) * index(shape_->tokens) + index(token)];
  }
  int copies_;
  std::vector<Slot> slots_;  // [heads, tokens]
  std::int64_t payload_ = 0, entries_ = 0;
};

// The entries of a head one after another; every head has room for as many bytes as the longest.
class PaddedStore final : public LayerStore {
 public:
  PaddedStore(const PoolShape& shape, ArenaSet& arenas);
  [[nodiscard]] bool there(int representation) const override {
    return bytes_of(representation) > 0;
  }
  void append(TokenIndex token) override;
  void place(int head, TokenIndex token, int representation) override;
  void change(int head, TokenIndex token, int representation) override;
  void remove(int head, TokenIndex token, bool returns) override;
  void settle(bool pass_ends) override;
  [[nodiscard]] std::optional<Address> find(int head, TokenIndex token, int copy) const override;
  [[nodiscard]] Usage usage() const override;
  [[nodiscard]] std::int64_t table_entries() const override { return shape_->heads; }

 private:
  struct Item {
    TokenIndex token = 0;
    std::int64_t bytes = 0, offset = 0;
  };
  struct Head {
    Region region;
    std::vector<Item> items;             // by offset; 0 bytes: has left
    std::vector<std::int32_t> place_of;  // [tokens] in items, -1: none
    std::int64_t end = 0;                // of the last item
    std::int64_t payload = 0;
  };
  void put(int head, TokenIndex token, std::int64_t bytes);
  // Room in every head for the longest.
  void fit();
  std::vector<Head> heads_;
};

}  // namespace kvspan::gpu_replay
