// SPDX-License-Identifier: Apache-2.0
// Shared by stores that merge victims into what stays: values that are no longer the trace's.
#pragma once

#include <map>
#include <span>
#include <utility>
#include <vector>

#include "sim/policies/shared/groups.h"

namespace kvspan::policies {

// sum += weight * x; an empty sum is 0.
inline void add_scaled(double weight, std::span<const float> x, std::vector<double>& sum) {
  sum.resize(x.size(), 0.0);
  for (std::size_t i = 0; i < x.size(); ++i) sum[i] += weight * static_cast<double>(x[i]);
}

class HeldValues {
 public:
  explicit HeldValues(int heads) : changed_(index(heads)) {}
  // What an entry of a stored head holds.
  [[nodiscard]] std::vector<float> of(const View& view, int head, TokenIndex token) const {
    const auto& changed = changed_[index(head)];
    const auto found = changed.find(token);
    return found != changed.end() ? found->second : view.value(view.shape().kv_head(head), token);
  }
  // Holds another value from the end of the pass on.
  void change(const View& view, int head, TokenIndex token, std::vector<float> value,
              Decision& out) {
    out.rewrites.push_back({view.shape().kv_head(head), token, {}, value});
    changed_[index(head)][token] = std::move(value);
  }
  void forget(int head, TokenIndex token) { changed_[index(head)].erase(token); }

 private:
  std::vector<std::map<TokenIndex, std::vector<float>>> changed_;  // [heads]
};

// Tokens of a head that leave by the decision so far.
[[nodiscard]] inline std::vector<TokenIndex> victims_of(int head, const Decision& so_far) {
  std::vector<TokenIndex> out;
  for (const Eviction& e : so_far.evictions) {
    if (e.head == head) out.push_back(e.token);
  }
  return out;
}

}  // namespace kvspan::policies
