// SPDX-License-Identifier: Apache-2.0
// MiKV's store: what is demoted is quantised, keys under a balancer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <unordered_set>
#include <vector>

#include "sim/policies/shared/quantise.h"

namespace kvspan::policies {

class Tiers final : public Store {
 public:
  struct Settings {
    int high = 16;
    int low = 2;
    std::int64_t group = 0;  // 0: half of the channels
    bool balancer = true;
    [[nodiscard]] std::int64_t group_of(std::int64_t dim) const {
      return group > 0 ? std::min(group, dim) : (dim + 1) / 2;
    }
    [[nodiscard]] std::int64_t bytes(const Geometry& g, int bits) const {
      if (bits == 16) return g.entry_bytes();
      return packed_bytes(g.k_dim, bits, group_of(g.k_dim)) +
             packed_bytes(g.v_dim, bits, group_of(g.v_dim));
    }
  };
  // Representations: [0] is how entries are born.
  static constexpr int kLow = 1;
  static constexpr int kHigh = 2;

  Tiers(const Settings& settings, const LayerShape& shape)
      : settings_(settings), low_(index(shape.heads)), high_below_(index(shape.heads), 0) {}
  std::optional<int> demote(int head, TokenIndex token) override;
  void age(const View& view, Decision& out) override;

 private:
  // What was never demoted, in this pass or before, is quantised to the high tier.
  void enter_high(const View& view, Decision& out);
  void hold(Rewrite& rewrite, int bits) const;
  // From the rows and keys of the prompt, whether or not they are still in the cache.
  void balance(const View& view);
  Settings settings_;
  std::vector<std::unordered_set<TokenIndex>> low_;  // [heads] ever demoted
  std::vector<TokenIndex> high_below_;        // [heads] older entries have been in the high tier
  std::vector<TokenIndex> old_high_;          // the same before this pass
  std::vector<std::vector<float>> balancer_;  // [heads][channels]
};

}  // namespace kvspan::policies
