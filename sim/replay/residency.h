// SPDX-License-Identifier: Apache-2.0
// Who is held: the entries of every stored head of one layer.
#pragma once

#include <span>
#include <vector>

#include "sim/policy/policy.h"

namespace kvspan {

class Residency {
 public:
  Residency(int heads, RowIndex tokens);
  // Entries [begin, end) are born, in every head. REQUIRES: begin follows the last end.
  void add(RowIndex begin, RowIndex end);
  // Returns the first that is not resident, null when all of them have left.
  // REQUIRES: evictions stand by head.
  [[nodiscard]] const Eviction* evict(const std::vector<Eviction>& evictions);
  // REQUIRES: its tokens are resident.
  void arrange(const Arrangement& arrangement);

  // Ascending.
  [[nodiscard]] std::span<const TokenIndex> entries(int head) const {
    return entries_[index(head)];
  }
  // As they lie in the cache: ascending until something was arranged.
  [[nodiscard]] std::span<const TokenIndex> cached(int head) const {
    return cached_[index(head)].empty() ? entries(head) : cached_[index(head)];
  }
  // [padded tokens] 1: resident.
  [[nodiscard]] const std::vector<float>& mask(int head) const { return mask_[index(head)]; }
  [[nodiscard]] bool holds(int head, TokenIndex token) const;
  // Nothing has left.
  [[nodiscard]] bool whole(int head) const { return evicted_[index(head)] == 0; }
  [[nodiscard]] bool whole() const;

 private:
  // Drops from the list who is no longer in the mask.
  void drop(std::span<const Eviction> of_one_head);
  std::vector<std::vector<TokenIndex>> entries_;  // [heads]
  std::vector<std::vector<TokenIndex>> cached_;   // [heads] empty: as entries_
  std::vector<std::vector<float>> mask_;          // [heads]
  std::vector<char> evicted_;                     // [heads] something has left
};

}  // namespace kvspan
