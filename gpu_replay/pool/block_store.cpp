// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/pool/block_store.h"

#include <algorithm>
#include <cassert>

#include "sim/ledger/lives.h"

namespace kvspan::gpu_replay {

// ---- What they share ----------------------------------------------------------------------------

BlockStore::BlockStore(const PoolShape& shape, ArenaSet& arenas, std::int64_t size, bool per_layer)
    : LayerStore(shape, arenas),
      size_(size),
      per_layer_(per_layer),
      slot_bytes_(bytes_of(0)),
      heads_(index(shape.heads)),
      arena_(slot_bytes_ == 0 ? nullptr
                              : &arenas.of(size * slot_bytes_ * (per_layer ? shape.heads : 1))),
      tables_(per_layer ? 1 : index(shape.heads)),
      held_as_(index(shape.heads) * index(shape.tokens), 0) {
  for (Head& head : heads_) head.slot_of.assign(index(shape.tokens), kNone);
}

BlockStore::~BlockStore() {
  for (const auto& blocks : tables_) {
    for (const BlockArena::Block block : blocks) {
      if (block != kNone) arena_->free(block);
    }
  }
}

bool BlockStore::there(int representation) const {
  return slot_bytes_ > 0 && on_device(shape_->representations[index(representation)]).entries > 0;
}

void BlockStore::extend(int head, std::int64_t slots) {
  std::vector<BlockArena::Block>& blocks = table(head);
  while (std::ssize(blocks) * size_ < slots) blocks.push_back(arena_->allocate());
}

void BlockStore::put(int head, TokenIndex token, std::int32_t slot, int representation) {
  Head& to = heads_[index(head)];
  if (to.token_at.size() <= index(slot)) to.token_at.resize(index(slot) + 1, kNone);
  assert(to.token_at[index(slot)] == kNone && to.slot_of[index(token)] == kNone);
  to.token_at[index(slot)] = token;
  to.slot_of[index(token)] = slot;
  held_as_[index(head) * index(shape_->tokens) + index(token)] = representation;
  ++to.live;
  to.payload += bytes_of(representation);
}

void BlockStore::take(int head, TokenIndex token) {
  Head& from = heads_[index(head)];
  std::int32_t& slot = from.slot_of[index(token)];
  from.payload -= bytes_of(held_as_[index(head) * index(shape_->tokens) + index(token)]);
  from.token_at[index(slot)] = kNone;
  slot = kNone;
  --from.live;
}

void BlockStore::change(int head, TokenIndex token, int representation) {
  Head& of = heads_[index(head)];
  int& held_as = held_as_[index(head) * index(shape_->tokens) + index(token)];
  of.payload += bytes_of(representation) - bytes_of(held_as);
  held_as = representation;
}

void BlockStore::move_slot(int head, std::int32_t from, std::int32_t to) {
  Head& of = heads_[index(head)];
  const TokenIndex token = of.token_at[index(from)];
  move(slot_address(head, from), slot_address(head, to), slot_bytes_);
  of.token_at[index(to)] = token;
  of.token_at[index(from)] = kNone;
  of.slot_of[index(token)] = to;
}

Address BlockStore::slot_address(int head, std::int32_t slot) const {
  const BlockArena::Block block = tables_[per_layer_ ? 0 : index(head)][index(slot / size_)];
  const std::int64_t place = (per_layer_ ? head * size_ : 0) + slot % size_;
  return arena_->address(block) + place * slot_bytes_;
}

std::optional<Address> BlockStore::find(int head, TokenIndex token, int /*copy*/) const {
  const std::int32_t slot = heads_[index(head)].slot_of[index(token)];
  if (slot == kNone) return std::nullopt;
  return slot_address(head, slot);
}

std::int64_t BlockStore::table_entries() const {
  std::int64_t entries = 0;
  for (const auto& blocks : tables_)
    entries += std::ssize(blocks) - std::count(blocks.begin(), blocks.end(), kNone);
  return entries;
}

HeadTable BlockStore::table_of(int head) const {
  HeadTable out;
  out.block_size = size_;
  out.slot_bytes = slot_bytes_;
  const Head& of = heads_[index(head)];
  const auto& blocks = tables_[per_layer_ ? 0 : index(head)];
  for (std::size_t block = 0; block < blocks.size(); ++block) {
    const auto first = static_cast<std::int32_t>(static_cast<std::int64_t>(block) * size_);
    out.blocks.push_back(blocks[block] == kNone ? 0 : slot_address(head, first));
  }
  for (std::size_t t = 0; t < of.slot_of.size(); ++t) {
    if (of.slot_of[t] == kNone) continue;
    out.slots.push_back(of.slot_of[t]);
    out.tokens.push_back(static_cast<TokenIndex>(t));
  }
  return out;
}

Usage BlockStore::usage_of(std::int64_t tail_slots) const {
  Usage out;
  std::int64_t live = 0;
  for (const Head& head : heads_) {
    live += head.live;
    out.payload += head.payload;
  }
  const std::int64_t slots = table_entries() * size_ * (per_layer_ ? shape_->heads : 1);
  out.narrow = live * slot_bytes_ - out.payload;
  out.tail = tail_slots * slot_bytes_;
  out.dead = (slots - live - tail_slots) * slot_bytes_;
  return out;
}

// ---- Paged, masked ------------------------------------------------------------------------------

PagedStore::PagedStore(const PoolShape& shape, ArenaSet& arenas, std::int64_t size, bool frees)
    : BlockStore(shape, arenas, size, frees ? shape.layout.per_layer : true), frees_(frees) {
  waiting_.resize(per_layer_ ? 1 : index(shape.heads));
}

void PagedStore::append(TokenIndex token) {
  born_ = token + 1;
  if (!there(0)) return;
  for (int head = 0; head < shape_->heads; ++head) {
    extend(head, born_);
    auto& waiting = waiting_[per_layer_ ? 0 : index(head)];
    waiting.resize(table(head).size(), 0);
    ++waiting.back();
    put(head, token, token, 0);
  }
}

void PagedStore::place(int head, TokenIndex token, int representation) {
  put(head, token, token, representation);
}

void PagedStore::remove(int head, TokenIndex token, bool returns) {
  take(head, token);
  if (returns) return;
  const std::int64_t block = token / size_;
  --waiting_[per_layer_ ? 0 : index(head)][index(block)];
  drop_if_empty(head, block);
}

void PagedStore::drop_if_empty(int head, std::int64_t block) {
  // Newborns go on filling the last block.
  if (!frees_ || (block + 1) * size_ > born_) return;
  if (waiting_[per_layer_ ? 0 : index(head)][index(block)] > 0) return;
  BlockArena::Block& entry = table(head)[index(block)];
  free_block(entry);
  entry = kNone;
}

Usage PagedStore::usage() const {
  if (slot_bytes_ == 0) return {};
  const std::int64_t blocks = (born_ + size_ - 1) / size_;
  return usage_of((blocks * size_ - born_) * shape_->heads);
}

// ---- Compact ------------------------------------------------------------------------------------

CompactStore::CompactStore(const PoolShape& shape, ArenaSet& arenas)
    : BlockStore(shape, arenas, shape.layout.block_size, shape.layout.per_layer) {}

void CompactStore::append(TokenIndex token) {
  if (!there(0)) return;
  for (int head = 0; head < shape_->heads; ++head) place(head, token, 0);
}

void CompactStore::place(int head, TokenIndex token, int representation) {
  const auto slot = static_cast<std::int32_t>(heads_[index(head)].token_at.size());
  extend(head, slot + 1);
  put(head, token, slot, representation);
}

void CompactStore::remove(int head, TokenIndex token, bool /*returns*/) { take(head, token); }

void CompactStore::fill_holes(int head) {
  Head& of = heads_[index(head)];
  std::size_t hole = 0;
  while (true) {
    while (!of.token_at.empty() && of.token_at.back() == kNone) of.token_at.pop_back();
    while (hole < of.token_at.size() && of.token_at[hole] != kNone) ++hole;
    if (hole >= of.token_at.size()) return;
    move_slot(head, static_cast<std::int32_t>(of.token_at.size() - 1),
              static_cast<std::int32_t>(hole));
  }
}

void CompactStore::settle(bool /*pass_ends*/) {
  if (slot_bytes_ == 0) return;
  std::int64_t longest = 0;
  for (int head = 0; head < shape_->heads; ++head) {
    if (heads_[index(head)].live < std::ssize(heads_[index(head)].token_at)) fill_holes(head);
    longest = std::max(longest, heads_[index(head)].live);
  }
  for (int head = 0; head < (per_layer_ ? 1 : shape_->heads); ++head) {
    const std::int64_t slots = per_layer_ ? longest : heads_[index(head)].live;
    std::vector<BlockArena::Block>& blocks = table(head);
    for (; (std::ssize(blocks) - 1) * size_ >= slots && !blocks.empty(); blocks.pop_back())
      free_block(blocks.back());
  }
}

Usage CompactStore::usage() const {
  std::int64_t tail = 0;
  std::int64_t longest = 0;
  for (const Head& head : heads_) {
    tail += (size_ - head.live % size_) % size_;
    longest = std::max(longest, head.live);
  }
  if (per_layer_) tail = (size_ - longest % size_) % size_ * shape_->heads;
  return usage_of(tail);
}

// ---- OpenVINO -----------------------------------------------------------------------------------

OpenvinoStore::OpenvinoStore(const PoolShape& shape, ArenaSet& arenas)
    : BlockStore(shape, arenas, shape.layout.block_size, true) {}

void OpenvinoStore::append(TokenIndex token) {
  if (!there(0)) return;
  extend(0, held_ + 1);
  for (int head = 0; head < shape_->heads; ++head) put(head, token, held_, 0);
  ++held_;
}

void OpenvinoStore::place(int head, TokenIndex token, int representation) {
  Head& to = heads_[index(head)];
  to.token_at.resize(index(held_), kNone);
  const auto hole = std::find(to.token_at.begin(), to.token_at.end(), kNone);
  const auto slot = static_cast<std::int32_t>(hole - to.token_at.begin());
  extend(0, slot + 1);
  held_ = std::max(held_, slot + 1);
  put(head, token, slot, representation);
}

void OpenvinoStore::remove(int head, TokenIndex token, bool /*returns*/) { take(head, token); }

void OpenvinoStore::settle(bool pass_ends) {
  if (!pass_ends || slot_bytes_ == 0) return;
  std::int64_t longest = 0;
  for (const Head& head : heads_) longest = std::max(longest, head.live);
  const std::int64_t stays = openvino_held(held_, longest, size_);
  if (stays < held_) drop(emptiest((held_ - stays) / size_));
}

std::vector<std::int64_t> OpenvinoStore::emptiest(std::int64_t count) const {
  // Not the first block, nor the last one that is full: start and recent area.
  const std::int64_t full = held_ / size_;
  std::vector<std::int64_t> live(index(full), 0);
  for (const Head& head : heads_) {
    for (std::size_t slot = 0; slot < std::min(head.token_at.size(), index(full * size_)); ++slot)
      live[slot / index(size_)] += head.token_at[slot] != kNone ? 1 : 0;
  }
  std::vector<std::int64_t> blocks;
  for (std::int64_t block = 1; block + 1 < full; ++block) blocks.push_back(block);
  std::stable_sort(blocks.begin(), blocks.end(),
                   [&](std::int64_t a, std::int64_t b) { return live[index(a)] < live[index(b)]; });
  assert(std::ssize(blocks) >= count);
  blocks.resize(index(count));
  std::sort(blocks.begin(), blocks.end());
  return blocks;
}

void OpenvinoStore::drop(const std::vector<std::int64_t>& blocks) {
  std::vector<char> leaves(table(0).size(), 0);
  for (const std::int64_t block : blocks) leaves[index(block)] = 1;
  for (int h = 0; h < shape_->heads; ++h) {
    Head& head = heads_[index(h)];
    head.token_at.resize(index(held_), kNone);
    std::int32_t hole = 0;
    for (std::int32_t slot = 0; slot < held_; ++slot) {
      if (leaves[index(slot / size_)] == 0 || head.token_at[index(slot)] == kNone) continue;
      while (leaves[index(hole / size_)] != 0 || head.token_at[index(hole)] != kNone) ++hole;
      move_slot(h, slot, hole);
    }
    // The blocks behind move up in the table, not in memory.
    std::size_t to = 0;
    for (std::int32_t slot = 0; slot < held_; ++slot) {
      if (leaves[index(slot / size_)] != 0) continue;
      const TokenIndex token = head.token_at[index(slot)];
      head.token_at[to] = token;
      if (token != kNone) head.slot_of[index(token)] = static_cast<std::int32_t>(to);
      ++to;
    }
    head.token_at.resize(to);
  }
  std::vector<BlockArena::Block>& all = table(0);
  std::vector<BlockArena::Block> kept;
  for (std::size_t block = 0; block < all.size(); ++block) {
    if (leaves[block] != 0)
      free_block(all[block]);
    else
      kept.push_back(all[block]);
  }
  all = std::move(kept);
  held_ -= static_cast<std::int32_t>(blocks.size()) * static_cast<std::int32_t>(size_);
}

Usage OpenvinoStore::usage() const {
  if (slot_bytes_ == 0) return {};
  return usage_of((size_ - held_ % size_) % size_ * shape_->heads);
}

}  // namespace kvspan::gpu_replay
