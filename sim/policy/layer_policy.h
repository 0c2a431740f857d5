// SPDX-License-Identifier: Apache-2.0
// A policy at work on one layer.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sim/policy/model_budget.h"
#include "sim/policy/policy.h"

namespace kvspan {

// One layer of one policy: the object that an engine or a running model drives.
class LayerPolicy {
 public:
  LayerPolicy(const Policy& policy, const LayerShape& shape);
  // Everything that any role of this layer observes.
  [[nodiscard]] Needs needs() const;
  // Rows before the end of `pass` that a rule due there observes; 0 if none is due.
  [[nodiscard]] RowIndex rows_observed(const Pass& pass) const;
  [[nodiscard]] bool due(const Pass& pass) const;  // a rule acts, or the store ages
  [[nodiscard]] bool due(const Pass& pass, std::size_t rule) const;
  [[nodiscard]] bool selects() const { return prefill_reads_ || selector_; }
  [[nodiscard]] Selector* selector(const Pass& pass) const;  // of this pass; may be null
  [[nodiscard]] Store* store() const { return store_.get(); }
  void observe(const View& view, RowIndex begin, RowIndex end);
  // Runs every rule that is due. views[r] shows the layer through rule r's domain, null if the rule
  // is not due; one more, at the end, shows it to the store if there is one.
  [[nodiscard]] Decision end_pass(std::span<const View* const> views);
  // What this layer shows to the budget of all layers (see coupled_rule()) at the evict point: that
  // rule's scores, once the rules before it have acted.
  [[nodiscard]] LayerShow show(std::span<const View* const> views);

 private:
  struct Ranking;
  [[nodiscard]] Ranking rank(std::size_t rule, const View& view, const Decision& so_far);
  void apply(std::size_t rule, const View& view, Decision& out);
  const Policy* policy_;
  LayerShape shape_;
  std::vector<std::unique_ptr<Scorer>> scorers_;  // one a rule
  std::unique_ptr<Selector> prefill_reads_, selector_;
  std::unique_ptr<Store> store_;
  std::vector<std::vector<char>> demoted_;  // [heads][tokens so far] competes no more
};

// Text of a PolicyError or note: "policy, layer 3, row 512: what".
[[nodiscard]] std::string at(const Policy& policy, const LayerShape& shape, const Pass& pass);

}  // namespace kvspan
