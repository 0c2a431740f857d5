// SPDX-License-Identifier: Apache-2.0
// Shared by policies: ways of ranking entries that several of them use.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "sim/policies/shared/groups.h"
#include "sim/policy/registry.h"

namespace kvspan::policies {

// The observation-window votes of SnapKV: their parameters and their scorer.
[[nodiscard]] std::vector<Parameter> votes_parameters(int window, int kernel);
[[nodiscard]] Scoring votes_scoring(const Arguments& arguments);
struct VotesSettings {
  RowIndex window = 0;
  int kernel = 1;
  Pool kind = Pool::max;
  Group group = Group::mean;
  bool pool_first = false;
};
[[nodiscard]] Scoring votes_scoring(const VotesSettings& settings);

// Ranks entries by the attention they received from all rows so far, summed over the group (H2O).
// State: 4 bytes an entry. normalise: divided by the number of rows that saw the entry.
[[nodiscard]] Scoring column_sum_scoring(bool normalise = false);

// Ranks entries by their position: the newest are kept first.
[[nodiscard]] Scoring position_scoring();

// Ranks entries by a number that is known when an entry is born and never changes. `make` builds
// the function of one layer: values of the tokens [begin, end) of a stored head, out [end - begin].
using BirthValues = std::function<void(const View& view, int head, TokenIndex begin, TokenIndex end,
                                       std::span<double> out)>;
[[nodiscard]] ScorerFactory birth_scorer(const Needs& needs,
                                         std::function<BirthValues(const LayerShape&)> make);

}  // namespace kvspan::policies
