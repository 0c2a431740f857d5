// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/residency.h"

#include <algorithm>

#include "sim/attention/kernels.h"

namespace kvspan {

Residency::Residency(int heads, RowIndex tokens)
    : entries_(index(heads)),
      mask_(index(heads),
            std::vector<float>(static_cast<std::size_t>(kernels::padded(tokens)), 0.0F)),
      evicted_(index(heads), 0) {
  for (auto& list : entries_) list.reserve(static_cast<std::size_t>(tokens));
}

void Residency::add(RowIndex begin, RowIndex end) {
  for (std::size_t h = 0; h < entries_.size(); ++h) {
    for (RowIndex token = begin; token < end; ++token) {
      entries_[h].push_back(static_cast<TokenIndex>(token));
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
  auto& list = entries_[index(of_one_head.front().head)];
  if (of_one_head.size() == 1) {
    list.erase(std::lower_bound(list.begin(), list.end(), of_one_head.front().token));
    return;
  }
  const auto& mask = mask_[index(of_one_head.front().head)];
  std::erase_if(list, [&](TokenIndex t) { return mask[static_cast<std::size_t>(t)] == 0.0F; });
}

}  // namespace kvspan
