// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/pool/byte_stores.h"

#include <algorithm>
#include <cassert>

namespace kvspan::gpu_replay {

EntryStore::EntryStore(const PoolShape& shape, ArenaSet& arenas, int copies)
    : LayerStore(shape, arenas),
      copies_(copies),
      slots_(index(shape.heads) * index(shape.tokens)) {}

EntryStore::~EntryStore() {
  for (const Slot& slot : slots_) {
    if (slot.bytes > 0) arenas_->of(slot.bytes * copies_).free(slot.block);
  }
}

void EntryStore::append(TokenIndex token) {
  if (!there(0)) return;
  for (int head = 0; head < shape_->heads; ++head) place(head, token, 0);
}

void EntryStore::place(int head, TokenIndex token, int representation) {
  const std::int64_t bytes = bytes_of(representation);
  Slot& to = slot(head, token);
  assert(to.bytes == 0);
  to.block = arenas_->of(bytes * copies_).allocate();
  to.bytes = bytes;
  payload_ += bytes;
  ++entries_;
}

void EntryStore::change(int head, TokenIndex token, int representation) {
  if (slot(head, token).bytes == bytes_of(representation)) return;
  remove(head, token, false);
  place(head, token, representation);
}

void EntryStore::remove(int head, TokenIndex token, bool /*returns*/) {
  Slot& from = slot(head, token);
  arenas_->of(from.bytes * copies_).free(from.block);
  payload_ -= from.bytes;
  --entries_;
  from.bytes = 0;
}

std::optional<Address> EntryStore::find(int head, TokenIndex token, int copy) const {
  const Slot& at = slots_[index(head) * index(shape_->tokens) + index(token)];
  if (at.bytes == 0) return std::nullopt;
  return arenas_->of(at.bytes * copies_).address(at.block) + copy * at.bytes;
}

Usage EntryStore::usage() const {
  Usage out;
  out.payload = payload_;
  out.copies = payload_ * (copies_ - 1);
  return out;
}

PaddedStore::PaddedStore(const PoolShape& shape, ArenaSet& arenas) : LayerStore(shape, arenas) {
  std::int64_t widest = 0;
  for (const Representation& r : shape.representations) widest = std::max(widest, r.device_bytes);
  for (int head = 0; head < shape.heads; ++head) {
    heads_.push_back({Region(arenas.memory(), 2 * widest * shape.tokens),
                      {},
                      std::vector<std::int32_t>(index(shape.tokens), -1),
                      0,
                      0});
  }
}

void PaddedStore::append(TokenIndex token) {
  if (!there(0)) return;
  for (int head = 0; head < shape_->heads; ++head) put(head, token, bytes_of(0));
  fit();
}

void PaddedStore::place(int head, TokenIndex token, int representation) {
  put(head, token, bytes_of(representation));
  fit();
}

void PaddedStore::put(int head, TokenIndex token, std::int64_t bytes) {
  Head& to = heads_[index(head)];
  assert(to.place_of[index(token)] < 0);
  to.place_of[index(token)] = static_cast<std::int32_t>(to.items.size());
  to.items.push_back({token, bytes, to.end});
  to.end += bytes;
  to.payload += bytes;
}

void PaddedStore::change(int head, TokenIndex token, int representation) {
  const std::int64_t bytes = bytes_of(representation);
  Head& of = heads_[index(head)];
  Item& item = of.items[index(of.place_of[index(token)])];
  if (bytes > item.bytes) {
    remove(head, token, false);
    place(head, token, representation);
    return;
  }
  of.payload += bytes - item.bytes;
  item.bytes = bytes;
}

void PaddedStore::remove(int head, TokenIndex token, bool /*returns*/) {
  Head& of = heads_[index(head)];
  std::int32_t& place = of.place_of[index(token)];
  of.payload -= of.items[index(place)].bytes;
  of.items[index(place)].bytes = 0;
  place = -1;
}

void PaddedStore::settle(bool /*pass_ends*/) {
  for (Head& head : heads_) {
    if (head.end == head.payload) continue;
    std::size_t kept = 0;
    std::int64_t end = 0;
    for (const Item& item : head.items) {
      if (item.bytes == 0) continue;
      move(head.region.begin() + item.offset, head.region.begin() + end, item.bytes);
      head.place_of[index(item.token)] = static_cast<std::int32_t>(kept);
      head.items[kept++] = {item.token, item.bytes, end};
      end += item.bytes;
    }
    head.items.resize(kept);
    head.end = end;
  }
  fit();
}

void PaddedStore::fit() {
  std::int64_t longest = 0;
  for (const Head& head : heads_) longest = std::max(longest, head.end);
  for (Head& head : heads_) count_moved(head.region.resize(longest));
}

std::optional<Address> PaddedStore::find(int head, TokenIndex token, int /*copy*/) const {
  const Head& of = heads_[index(head)];
  const std::int32_t place = of.place_of[index(token)];
  if (place < 0) return std::nullopt;
  return of.region.begin() + of.items[index(place)].offset;
}

Usage PaddedStore::usage() const {
  Usage out;
  std::int64_t longest = 0;
  for (const Head& head : heads_) {
    longest = std::max(longest, head.end);
    out.payload += head.payload;
  }
  out.dead = longest * shape_->heads - out.payload;
  return out;
}

}  // namespace kvspan::gpu_replay
