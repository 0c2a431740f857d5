// SPDX-License-Identifier: Apache-2.0
// Shared by stores that merge victims into what stays, keys and values: what entries hold.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "sim/policies/shared/held_values.h"

namespace kvspan::policies {

struct HeldEntry {
  std::vector<float> k, v;
};

class HeldEntries {
 public:
  explicit HeldEntries(int heads) : changed_(index(heads)) {}
  // What an entry of a stored head holds.
  [[nodiscard]] HeldEntry of(const View& view, int head, TokenIndex token) const {
    const auto& changed = changed_[index(head)];
    if (const auto found = changed.find(token); found != changed.end()) return found->second;
    const int kv_head = view.shape().kv_head(head);
    return {view.key(kv_head, token), view.value(kv_head, token)};
  }
  // Their keys.  [entries][k_dim]
  [[nodiscard]] std::vector<float> keys(const View& view, int head,
                                        std::span<const TokenIndex> entries) const {
    std::vector<float> out = vectors_of(view, Vectors::keys, view.shape().kv_head(head), entries);
    const auto dim = index(view.shape().k_dim);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const auto found = changed_[index(head)].find(entries[i]);
      if (found != changed_[index(head)].end())
        std::ranges::copy(found->second.k, out.begin() + static_cast<std::ptrdiff_t>(i * dim));
    }
    return out;
  }
  // Holds other vectors from the end of the pass on.
  void change(const View& view, int head, TokenIndex token, HeldEntry entry, Decision& out) {
    out.rewrites.push_back({view.shape().kv_head(head), token, entry.k, entry.v});
    changed_[index(head)][token] = std::move(entry);
  }
  void forget(int head, TokenIndex token) { changed_[index(head)].erase(token); }

 private:
  std::vector<std::map<TokenIndex, HeldEntry>> changed_;  // [heads]
};

// The key with the largest cosine, the first of equal ones. keys [entries][dim]
struct NearestKey {
  std::size_t place = 0;
  double cosine = -2;
};
[[nodiscard]] inline NearestKey nearest_key(std::span<const float> key,
                                            std::span<const float> keys) {
  constexpr double kFloor = 1e-6;  // of a norm
  NearestKey out;
  const std::size_t dim = key.size();
  const double own = std::max(std::sqrt(squared_norm(key)), kFloor);
  for (std::size_t i = 0; i * dim < keys.size(); ++i) {
    const std::span<const float> other = keys.subspan(i * dim, dim);
    const double norm = std::max(std::sqrt(squared_norm(other)), kFloor);
    const double cosine = dot(key, other) / own / norm;
    if (cosine > out.cosine) out = {i, cosine};
  }
  return out;
}

}  // namespace kvspan::policies
