// SPDX-License-Identifier: Apache-2.0
// Budgets that are coupled over layers: every head of every layer shows its scores at the evict
// point, before anything leaves there, and then all are told how many entries stay.
//
//   survey: every layer up to n', as it is without the decision  ->  share_out  ->  the replay
//
// Exact, because what rows attend to before the decision does not depend on it. Rules that share
// the budget may act again in decode, with the same numbers.
#pragma once

#include <span>
#include <vector>

#include "sim/policy/roles.h"

namespace kvspan {

// One stored layer at the evict point. A layer that a policy leaves alone shows no heads.
struct LayerShow {
  LayerShape shape;
  std::vector<std::vector<TokenIndex>> tokens;  // [heads] that may leave, as they were scored
  std::vector<std::vector<double>> scores;      // [heads] follow tokens
  std::vector<TokenCount> protected_;           // [heads]
  std::vector<double> figures;                  // see ModelBudget::figures()
};

// Entries that stay in every head of every stored layer. [layers][heads]
using Shares = std::vector<std::vector<TokenCount>>;

class ModelBudget : public Budget {
 public:
  bool content_free() const override { return false; }
  const ModelBudget* over_layers() const override { return this; }
  // What was shared out to the heads of the view's layer.
  void counts(const View& view, const Scores& scores, const Sizing& sizing,
              std::span<TokenCount> keep) const override;
  // What the decision looks at in one layer beside its scores.
  [[nodiscard]] virtual std::vector<double> figures(const View& /*view*/) const { return {}; }
  // layers [stored layers]; a layer that shows no heads gets an empty share.
  [[nodiscard]] virtual Shares share_out(std::span<const LayerShow> layers,
                                         const Sizing& sizing) const = 0;
};

}  // namespace kvspan
