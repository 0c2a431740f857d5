// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/residency.h"

#include <algorithm>

#include "sim/attention/kernels.h"

namespace kvspan {

Residency::Residency(int heads, RowIndex tokens)
    : entries_(index(heads)),
      cached_(index(heads)),
      mask_(index(heads),
            std::vector<float>(static_cast<std::size_t>(kernels::padded(tokens)), 0.0F)),
      evicted_(index(heads), 0) {
  for (auto& list : entries_) list.reserve(static_cast<std::size_t>(tokens));
}

void Residency::add(RowIndex begin, RowIndex end) {
  for (std::size_t h = 0; h < entries_.size(); ++h) {
    const bool arranged = !cached_[h].empty();
    for (RowIndex token = begin; token < end; ++token) {
      entries_[h].push_back(static_cast<TokenIndex>(token));
      if (arranged) cached_[h].push_back(static_cast<TokenIndex>(token));
      mask_[h][static_cast<std::size_t>(token)] = 1.0F;
    }
  }
}

bool Residency::holds(int head, TokenIndex token) const {
  const std::vector<float>& mask = mask_[index(head)];
  return token >= 0 && static_cast<std::size_t>(token) < mask.size() &&
         mask[static_cast<std::size_t>(token)] != 0.0F;
}

bool Residency::whole() const {
  return std::all_of(evicted_.begin(), evicted_.end(), [](char e) { return e == 0; });
}

const Eviction* Residency::evict(const std::vector<Eviction>& evictions) {
  for (const Eviction& e : evictions) {
    if (!holds(e.head, e.token)) return &e;
    mask_[index(e.head)][static_cast<std::size_t>(e.token)] = 0.0F;
    evicted_[index(e.head)] = 1;
  }
  for (std::size_t i = 0; i < evictions.size();) {
    const std::size_t first = i;
    while (i < evictions.size() && evictions[i].head == evictions[first].head) ++i;
    drop(std::span(evictions).subspan(first, i - first));
  }
  return nullptr;
}

void Residency::drop(std::span<const Eviction> of_one_head) {
  const std::size_t head = index(of_one_head.front().head);
  const auto left = [&](TokenIndex t) { return mask_[head][static_cast<std::size_t>(t)] == 0.0F; };
  std::erase_if(cached_[head], left);
  auto& list = entries_[head];
  if (of_one_head.size() == 1) {
    list.erase(std::lower_bound(list.begin(), list.end(), of_one_head.front().token));
    return;
  }
  std::erase_if(list, left);
}

void Residency::arrange(const Arrangement& arrangement) {
  const std::size_t head = index(arrangement.head);
  auto& list = cached_[head];
  if (list.empty()) list = entries_[head];
  std::vector<TokenIndex> moved = arrangement.tokens;
  std::sort(moved.begin(), moved.end());
  std::erase_if(list,
                [&](TokenIndex t) { return std::binary_search(moved.begin(), moved.end(), t); });
  list.insert(list.end(), arrangement.tokens.begin(), arrangement.tokens.end());
}

}  // namespace kvspan
