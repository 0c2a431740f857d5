// SPDX-License-Identifier: Apache-2.0
#include "gpu_replay/pool/kv_pool.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "sim/ledger/lives.h"

namespace kvspan::gpu_replay {

KvPool::KvPool(PoolShape shape, ArenaSet& arenas)
    : shape_(std::move(shape)),
      arenas_(&arenas),
      state_(index(shape_.layers) * index(shape_.heads) * index(shape_.tokens), kNotHeld),
      layer_usage_(index(shape_.layers)) {
  for (int layer = 0; layer < shape_.layers; ++layer)
    layers_.push_back(make_layer_store(shape_, arenas));
}

KvPool::~KvPool() { set_state(0); }

std::int64_t KvPool::counts(int representation) const {
  return on_device(shape_.representations[index(representation)]).entries;
}

void KvPool::recount(int layer) {
  Usage& of = layer_usage_[index(layer)];
  usage_ -= of;
  of = layers_[index(layer)]->usage();
  usage_ += of;
}

void KvPool::append(int layer, TokenIndex token) {
  layers_[index(layer)]->append(token);
  for (int head = 0; head < shape_.heads; ++head) state_[place(layer, head, token)] = 0;
  entries_ += shape_.heads * counts(0);
  recount(layer);
}

void KvPool::record(int layer, const Step& step) {
  std::int16_t& state = state_[place(layer, step.head, step.token)];
  assert(state != kNotHeld);
  entries_ -= counts(state);
  if (step.representation == Step::kEvicted) {
    state = kNotHeld;
    return;
  }
  state = static_cast<std::int16_t>(step.representation);
  entries_ += counts(state);
}

void KvPool::apply(int layer, std::span<const Step> steps, bool pass_ends) {
  if (steps.empty() && !pass_ends) return;
  LayerStore& store = *layers_[index(layer)];
  for (const Step& step : steps) {
    const bool was = store.there(held_as(layer, step.head, step.token));
    const bool is = step.representation != Step::kEvicted && store.there(step.representation);
    if (was && is)
      store.change(step.head, step.token, step.representation);
    else if (was)
      store.remove(step.head, step.token, step.returns);
    else if (is)
      store.place(step.head, step.token, step.representation);
    record(layer, step);
  }
  store.settle(pass_ends);
  recount(layer);
}

void KvPool::apply_by_copy(int layer, std::span<const Step> steps,
                           const std::function<void()>& between) {
  std::unique_ptr<LayerStore>& store = layers_[index(layer)];
  std::unique_ptr<LayerStore> fresh = make_layer_store(shape_, *arenas_);
  const auto begin = state_.begin() + static_cast<std::ptrdiff_t>(place(layer, 0, 0));
  const std::vector<std::int16_t> before(
      begin, begin + static_cast<std::ptrdiff_t>(shape_.heads) * shape_.tokens);
  std::vector<std::int16_t> after = before;
  for (const Step& step : steps) {
    after[index(step.head) * index(shape_.tokens) + index(step.token)] =
        static_cast<std::int16_t>(step.representation);
  }
  std::vector<std::byte> bytes;
  for (int head = 0; head < shape_.heads; ++head) {
    for (RowIndex t = 0; t < shape_.tokens; ++t) {
      const std::size_t at = index(head) * index(shape_.tokens) + index(t);
      if (after[at] == kNotHeld || !fresh->there(after[at])) continue;
      const auto token = static_cast<TokenIndex>(t);
      fresh->place(head, token, after[at]);
      if (before[at] != after[at]) continue;
      const std::int64_t size = shape_.representations[index(after[at])].device_bytes;
      for (int copy = 0; copy < copies(); ++copy) {
        arenas_->memory().copy(*store->find(head, token, copy), *fresh->find(head, token, copy),
                               size);
      }
      moved_ += size * copies();
    }
  }
  fresh->settle(true);
  usage_ += fresh->usage();
  between();
  usage_ -= fresh->usage();
  moved_ += store->moved();
  store = std::move(fresh);
  for (const Step& step : steps) record(layer, step);
  recount(layer);
}

void KvPool::set_state(std::int64_t bytes) {
  BlockArena& arena = arenas_->of(kStateBlock);
  while (std::ssize(state_blocks_) * kStateBlock < bytes) state_blocks_.push_back(arena.allocate());
  for (; (std::ssize(state_blocks_) - 1) * kStateBlock >= bytes && !state_blocks_.empty();
       state_blocks_.pop_back())
    arena.free(state_blocks_.back());
  state_bytes_ = bytes;
}

std::int64_t KvPool::table_entries() const {
  std::int64_t entries = 0;
  for (const auto& layer : layers_) entries += layer->table_entries();
  return entries;
}

std::int64_t KvPool::moved() const {
  std::int64_t bytes = moved_;
  for (const auto& layer : layers_) bytes += layer->moved();
  return bytes;
}

std::vector<TokenIndex> KvPool::held(int layer, int head) const {
  std::vector<TokenIndex> out;
  for (RowIndex t = 0; t < shape_.tokens; ++t) {
    const auto token = static_cast<TokenIndex>(t);
    if (state_[place(layer, head, token)] != kNotHeld) out.push_back(token);
  }
  return out;
}

bool KvPool::write(int layer, int head, TokenIndex token, std::span<const std::byte> bytes) {
  for (int copy = 0; copy < copies(); ++copy) {
    const std::optional<Address> at = find(layer, head, token, copy);
    if (!at) return false;
    arenas_->memory().write(*at, bytes);
  }
  return true;
}

bool KvPool::read(int layer, int head, TokenIndex token, std::span<std::byte> bytes,
                  int copy) const {
  const std::optional<Address> at = find(layer, head, token, copy);
  if (at) arenas_->memory().read(*at, bytes);
  return at.has_value();
}

}  // namespace kvspan::gpu_replay
