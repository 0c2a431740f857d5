// SPDX-License-Identifier: Apache-2.0
// Shared by policies that rank entries by a sum over all rows so far of what the rows attended to.
#pragma once

#include <concepts>
#include <memory>
#include <span>
#include <vector>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

// Which row of which query head attended.
struct AttentionRow {
  int model_layer = 0;
  int query_head = 0;
  RowIndex row = 0;
  std::span<const TokenIndex> entries;  // held when it did, ascending, up to the row itself
};

// One sum per query head and entry, to which every row adds; a stored head's score is their sum
// over its group, rounded so that the paper's ties stay ties. A policy says what a row adds.
class RowSums : public Scorer {
 public:
  explicit RowSums(const LayerShape& shape) : state_(std::make_shared<State>()) {
    state_->sums.resize(index(shape.query_heads));
  }
  [[nodiscard]] Needs needs() const override { return {.observe = Observe::always}; }
  void observe(const View& view, RowIndex begin, RowIndex end) final;
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 protected:
  // p' of one row -> what it weighs; p [entries].
  virtual void weigh(const AttentionRow& /*row*/, std::span<double> /*p*/) const {}
  // Adds one row to the sums of the entries that it saw; p, sums [entries].
  virtual void add(std::span<const double> p, std::span<double> sums) const;

 private:
  struct State {
    std::vector<std::vector<double>> sums;  // [query_heads][tokens so far]
    double slack = 0;                       // of one sum
  };
  std::shared_ptr<State> state_;  // maybe another budget's, too, while nothing has left
};

// S(shape, arguments...) ranks.
template <std::derived_from<RowSums> S, class... A>
[[nodiscard]] Scoring row_sum_scoring(A... arguments) {
  Scoring scoring;
  scoring.make = [arguments...](const LayerShape& shape) {
    return std::make_unique<S>(shape, arguments...);
  };
  scoring.evicts_in_decode = true;
  return scoring;
}

// The whole of a policy that evicts by such sums after the prompt and after every decode row, down
// to the parameter `budget`; its state is a number of 4 bytes an entry.
template <std::derived_from<RowSums> S, class... A>
[[nodiscard]] Recipe evict_by_row_sums(const Arguments& arguments, const Geometry& geometry,
                                       A... of_scorer) {
  Recipe recipe = budgeted(arguments, geometry, own(row_sum_scoring<S>(of_scorer...)),
                           own(Schedule::from_evict_point()));
  recipe.charge.entry = 4;
  return recipe;
}

}  // namespace kvspan::policies
