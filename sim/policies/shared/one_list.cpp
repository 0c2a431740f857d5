// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/one_list.h"

#include <algorithm>

namespace kvspan::policies {
namespace {

struct Candidate {
  double score;
  TokenIndex token;
  std::size_t head;
  bool operator<(const Candidate& other) const {
    if (score != other.score) return score > other.score;
    return token != other.token ? token < other.token : head < other.head;
  }
};

}  // namespace

std::vector<TokenCount> among_best(std::span<const Contender> heads, TokenCount places) {
  std::vector<TokenCount> count(heads.size(), 0);
  std::vector<Candidate> rest;
  for (std::size_t h = 0; h < heads.size(); ++h) {
    const Contender& x = heads[h];
    std::vector<Candidate> own(x.scores.size());
    for (std::size_t i = 0; i < own.size(); ++i) own[i] = {x.scores[i] * x.weight, x.tokens[i], h};
    const auto first = own.begin() + x.safe;
    if (first != own.begin() && first != own.end()) std::nth_element(own.begin(), first, own.end());
    rest.insert(rest.end(), first, own.end());
    count[h] = x.safe;
    places -= x.safe;
  }
  const auto taken = std::clamp<TokenCount>(places, 0, std::ssize(rest));
  if (taken < std::ssize(rest)) std::nth_element(rest.begin(), rest.begin() + taken, rest.end());
  for (TokenCount i = 0; i < taken; ++i) ++count[rest[index(i)].head];
  return count;
}

void charge_shown_scores(Recipe& recipe, const Geometry& geometry, RowIndex entries) {
  const int heads = geometry.shape(0, recipe.scorer.value.per_query_head).heads;
  const std::int64_t bytes =
      std::int64_t{geometry.layers()} * heads * std::max<RowIndex>(0, entries) * geometry.kv_bytes;
  recipe.charge.during = [before = recipe.charge.during, bytes,
                          last = geometry.evict_point - 1](RowIndex row) {
    return (row == last ? bytes : 0) + (before ? before(row) : 0);
  };
}

}  // namespace kvspan::policies
