// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/pool/layer_store.h"

#include <cassert>

#include "gpu_replay/pool/block_store.h"
#include "gpu_replay/pool/byte_stores.h"

namespace kvspan::gpu_replay {

PoolShape shape_of(const Ledger& ledger, const Layout& layout) {
  return {ledger.layers,      ledger.heads,           ledger.query_heads,
          ledger.plan.tokens, ledger.representations, layout};
}

Usage& Usage::operator+=(const Usage& other) {
  payload += other.payload;
  copies += other.copies;
  narrow += other.narrow;
  tail += other.tail;
  dead += other.dead;
  return *this;
}

Usage& Usage::operator-=(const Usage& other) {
  payload -= other.payload;
  copies -= other.copies;
  narrow -= other.narrow;
  tail -= other.tail;
  dead -= other.dead;
  return *this;
}

BlockArena& ArenaSet::of(std::int64_t block_bytes) {
  std::unique_ptr<BlockArena>& arena = arenas_[block_bytes];
  if (!arena) arena = std::make_unique<BlockArena>(*memory_, block_bytes);
  return *arena;
}

LayerStore::LayerStore(const PoolShape& shape, ArenaSet& arenas)
    : shape_(&shape), arenas_(&arenas) {
  assert(shape.query_heads % shape.heads == 0);
}

void LayerStore::move(Address from, Address to, std::int64_t bytes) {
  if (from == to || bytes == 0) return;
  arenas_->memory().copy(from, to, bytes);
  moved_ += bytes;
}

HeadTable LayerStore::table_of(int head) const {
  HeadTable out;
  for (RowIndex t = 0; t < shape_->tokens; ++t) {
    const auto token = static_cast<TokenIndex>(t);
    const std::optional<Address> at = find(head, token);
    if (!at) continue;
    out.slots.push_back(static_cast<std::int32_t>(out.blocks.size()));
    out.blocks.push_back(*at);
    out.tokens.push_back(token);
  }
  return out;
}

std::unique_ptr<LayerStore> make_layer_store(const PoolShape& shape, ArenaSet& arenas) {
  switch (shape.layout.kind) {
    case Layout::Kind::ideal:
      break;
    case Layout::Kind::query_head:
      return std::make_unique<EntryStore>(shape, arenas, shape.query_heads / shape.heads);
    case Layout::Kind::padded:
      return std::make_unique<PaddedStore>(shape, arenas);
    case Layout::Kind::paged:
      if (shape.layout.compact) return std::make_unique<CompactStore>(shape, arenas);
      return std::make_unique<PagedStore>(shape, arenas, shape.layout.block_size, true);
    case Layout::Kind::openvino:
      return std::make_unique<OpenvinoStore>(shape, arenas);
    case Layout::Kind::masked:
      return std::make_unique<PagedStore>(shape, arenas, 1, false);
  }
  return std::make_unique<EntryStore>(shape, arenas, 1);
}

}  // namespace kvspan::gpu_replay
