// SPDX-License-Identifier: Apache-2.0
// The rules of LAVa: how entries are ranked, and how layers and heads share.
#pragma once

#include <span>
#include <vector>

#include "sim/policy/model_budget.h"

namespace kvspan::policies {

// Votes of the window's rows, pooled, times the largest norm of the head's values.
class ValueVotes final : public Scorer {
 public:
  ValueVotes(RowIndex window, int kernel) : window_(window), kernel_(kernel) {}
  Needs needs() const override { return {.last_rows = window_, .v = true}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  RowIndex window_;
  int kernel_;
};

// Layers share by the entropy of their scores, the heads of a layer by the scores.
class EntropyShares final : public ModelBudget {
 public:
  struct Settings {
    RowIndex window;
    double alpha;
    bool floor_of_layer;
    bool even;  // no trace to share out by
  };
  explicit EntropyShares(const Settings& settings) : settings_(settings) {}
  TokenCount capacity(const LayerShape& shape, int head, const Sizing& sizing) const override;
  Shares share_out(std::span<const LayerShow> layers, const Sizing& sizing) const override;

 private:
  // What every head of a layer is sure of, where the layer has `part` entries a head.
  [[nodiscard]] double floor(TokenCount part, const Sizing& sizing) const;
  [[nodiscard]] std::vector<TokenCount> of_heads(const LayerShow& layer, TokenCount part,
                                                 const Sizing& sizing) const;
  Settings settings_;
};

}  // namespace kvspan::policies
