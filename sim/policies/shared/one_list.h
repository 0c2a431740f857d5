// SPDX-License-Identifier: Apache-2.0
// Shared by budgets that several heads share: all their candidates in one list, best first.
#pragma once

#include <span>
#include <vector>

#include "sim/policies/shared/helpers.h"
#include "sim/policy/model_budget.h"

namespace kvspan::policies {

// One head of those that share; scores follow tokens.
struct Contender {
  std::span<const TokenIndex> tokens;
  std::span<const double> scores;
  TokenCount safe = 0;  // its best so many are in
  double weight = 1;    // of its scores
};

// How many candidates of each head are among the best `places` of all heads. Ties go to the lower
// token, then to the head that comes first.
[[nodiscard]] std::vector<TokenCount> among_best(std::span<const Contender> heads,
                                                 TokenCount places);

// One ranking over all heads of a layer, or of all layers, at the evict point (see global): fills
// the shape of a recipe, and says and charges what goes with it.
//   alpha   share of the budget that every head is sure of
enum class Over : std::uint8_t { layer, model };
void share_out_by_one_ranking(Recipe& recipe, const Geometry& geometry, double alpha, Over over);

// What a budget of all layers has to remember while the prompt's last layer is still to come: a
// score of every entry, `entries` a head, in the model's type.
void charge_shown_scores(Recipe& recipe, const Geometry& geometry, RowIndex entries);

}  // namespace kvspan::policies
