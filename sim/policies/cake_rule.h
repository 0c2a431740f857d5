// SPDX-License-Identifier: Apache-2.0
// The rules of CAKE: what a layer is worth, how the layers share, and how entries are ranked.
#pragma once

#include <span>
#include <vector>

#include "sim/policy/model_budget.h"

namespace kvspan::policies {

struct CakeSettings {
  RowIndex window = 0;
  int kernel = 0;
  double gamma = 0, tau1 = 0, tau2 = 0;
  // So short a prompt is left alone.
  [[nodiscard]] bool leaves_alone(const Sizing& sizing) const {
    return sizing.rows <= sizing.tokens + window;
  }
};

// After the prompt: mean + gamma variance over the window's rows, pooled, mean of the group.
class CakeVotes final : public Scorer {
 public:
  explicit CakeVotes(const CakeSettings& settings) : settings_(settings) {}
  Needs needs() const override { return {.last_rows = settings_.window}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  CakeSettings settings_;
};

// In decode: the row's own attention, pooled as the entries lie in the cache, mean of the group.
class CakeRow final : public Scorer {
 public:
  explicit CakeRow(int kernel) : kernel_(kernel) {}
  Needs needs() const override { return {.last_rows = 1}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  int kernel_;
};

// Every layer's share of all that is kept before the windows.
class CakeShares : public ModelBudget {
 public:
  CakeShares(const CakeSettings& settings, bool even) : settings_(settings), even_(even) {}
  TokenCount capacity(const LayerShape& shape, int head, const Sizing& sizing) const override;
  // The layer's preference: entropy^(1/tau1) x variance^(1/tau2).
  std::vector<double> figures(const View& view) const override;
  Shares share_out(std::span<const LayerShow> layers, const Sizing& sizing) const override;

 protected:
  CakeSettings settings_;
  bool even_;
};

// The same in decode, where a prompt that was left alone counts, too.
class CakeSharesInDecode final : public CakeShares {
 public:
  using CakeShares::CakeShares;
  TokenCount capacity(const LayerShape& shape, int head, const Sizing& sizing) const override;
  void counts(const View& view, const Scores& scores, const Sizing& sizing,
              std::span<TokenCount> keep) const override;
};

// Entries of each layer by its preference, at most `most` each, `total` together if they have room:
// rounded down, and what is over goes evenly to those that have room.
[[nodiscard]] std::vector<TokenCount> cake_shares(std::span<const double> preferences,
                                                  TokenCount total, TokenCount most);

}  // namespace kvspan::policies
