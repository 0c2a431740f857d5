// SPDX-License-Identifier: Apache-2.0
// Where the entries of one layer lie in a device's memory. One kind of store for each layout:
//
//   ideal, query_head   a slot of its own size for every entry (times the query heads of its head)
//   padded              a run of addresses for every head, as long as the longest
//   paged, masked       blocks filled in order of birth, freed when all of it has left; or never
//   paged, compact      blocks whose holes are filled from the end after every eviction
//   openvino            blocks that leave whole, as soon as their entries fit into holes elsewhere
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "gpu_replay/pool/arena.h"
#include "sim/ledger/layouts.h"
#include "sim/ledger/ledger.h"

namespace kvspan::gpu_replay {

// What the layers of a pool have in common.
struct PoolShape {
  int layers = 0;
  int heads = 0;        // stored ones
  int query_heads = 0;  // a multiple
  RowIndex tokens = 0;
  std::vector<Representation> representations;  // [0]: as born
  Layout layout;
};
[[nodiscard]] PoolShape shape_of(const Ledger& ledger, const Layout& layout);

// Bytes of a layer, or of a whole pool, and what they are.
struct Usage {
  std::int64_t payload = 0;  // entries, as they are held
  std::int64_t copies = 0;   // of these for further query heads
  std::int64_t narrow = 0;   // slots larger than what lies in them
  std::int64_t tail = 0;     // slots that nothing was put into yet
  std::int64_t dead = 0;     // slots of what has left, or that pad a head up to the longest
  [[nodiscard]] std::int64_t used() const { return payload + copies + narrow + tail + dead; }
  Usage& operator+=(const Usage& other);
  Usage& operator-=(const Usage& other);
  bool operator==(const Usage&) const = default;
};

// The entries of one head as an attention kernel takes them: slot s is place s % block_size of
// block s / block_size.
struct HeadTable {
  std::int64_t block_size = 1;      // slots
  std::int64_t slot_bytes = 0;      // from one slot to the next
  std::vector<Address> blocks;      // of the head's part of each; 0: there is none
  std::vector<std::int32_t> slots;  // that hold an entry
  std::vector<TokenIndex> tokens;   // in them
};

// Arenas by the size of their blocks.
class ArenaSet {
 public:
  explicit ArenaSet(DeviceMemory& memory) : memory_(&memory) {}
  [[nodiscard]] BlockArena& of(std::int64_t block_bytes);
  [[nodiscard]] DeviceMemory& memory() const { return *memory_; }

 private:
  DeviceMemory* memory_;
  std::map<std::int64_t, std::unique_ptr<BlockArena>> arenas_;
};

class LayerStore {
 public:
  LayerStore(const PoolShape& shape, ArenaSet& arenas);
  virtual ~LayerStore() = default;
  LayerStore(const LayerStore&) = delete;
  LayerStore& operator=(const LayerStore&) = delete;

  // Whether an entry that is held so lies here at all.
  [[nodiscard]] virtual bool there(int representation) const = 0;
  // The next token is born in all heads, as representation 0. Errors: OutOfMemory.
  virtual void append(TokenIndex token) = 0;
  // An entry that is not here comes here. REQUIRES: there(representation). Errors: OutOfMemory.
  virtual void place(int head, TokenIndex token, int representation) = 0;
  // An entry is held otherwise; its bytes are to be written anew. REQUIRES: there(representation).
  virtual void change(int head, TokenIndex token, int representation) = 0;
  // An entry leaves. `returns`: it will be placed again.
  virtual void remove(int head, TokenIndex token, bool returns) = 0;
  // All that happens at this row has been told; moves what the layout wants to be moved.
  virtual void settle(bool pass_ends) = 0;

  // Where the bytes of an entry lie; nullopt: nowhere on the device, or it has no bytes there.
  //   copy    in [0, query heads of a head) of query_head; else 0
  [[nodiscard]] virtual std::optional<Address> find(int head, TokenIndex token,
                                                    int copy = 0) const = 0;
  [[nodiscard]] virtual Usage usage() const = 0;
  // By token. Blocks of one slot, unless a layout has larger ones.
  [[nodiscard]] virtual HeadTable table_of(int head) const;
  // Blocks, regions or slots that a runtime would have to list.
  [[nodiscard]] virtual std::int64_t table_entries() const = 0;
  // Bytes that were copied from one place of the device to another so far.
  [[nodiscard]] std::int64_t moved() const { return moved_; }

 protected:
  [[nodiscard]] std::int64_t bytes_of(int representation) const {
    return shape_->representations[index(representation)].device_bytes;
  }
  void move(Address from, Address to, std::int64_t bytes);
  void count_moved(std::int64_t bytes) { moved_ += bytes; }

  const PoolShape* shape_;
  ArenaSet* arenas_;

 private:
  std::int64_t moved_ = 0;
};

// `shape` and `arenas` must outlive it.
[[nodiscard]] std::unique_ptr<LayerStore> make_layer_store(const PoolShape& shape,
                                                           ArenaSet& arenas);

}  // namespace kvspan::gpu_replay
