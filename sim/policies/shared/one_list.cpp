// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/one_list.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

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

// Of heads that share: what each may lose, by score, and how many entries it cannot lose.
struct Sharers {
  std::vector<Contender> heads;
  std::vector<TokenCount> held;
  void add(std::span<const TokenIndex> tokens, std::span<const double> scores, TokenCount safe) {
    heads.push_back({tokens, scores});
    held.push_back(safe);
  }
};

// What every head keeps where each one's budget is `budget`: what it cannot lose, and the best of
// all fill the places that are left; `sure` of its best are in.
std::vector<TokenCount> filled(Sharers sharers, TokenCount budget, double alpha) {
  TokenCount places = 0;
  const auto sure = static_cast<TokenCount>(static_cast<double>(budget) * alpha);
  for (std::size_t h = 0; h < sharers.heads.size(); ++h) {
    Contender& head = sharers.heads[h];
    places += std::max<TokenCount>(0, budget - sharers.held[h]);
    head.safe = std::clamp<TokenCount>(sure - sharers.held[h], 0, std::ssize(head.scores));
  }
  std::vector<TokenCount> keep = among_best(sharers.heads, places);
  for (std::size_t h = 0; h < keep.size(); ++h) {
    const TokenCount held = sharers.held[h];
    keep[h] = held >= budget ? budget : held + keep[h];  // else the newest of what is held
  }
  return keep;
}

class OneRanking final : public ModelBudget {
 public:
  OneRanking(double alpha, bool even) : alpha_(alpha), even_(even) {}

  // One head may take what all have; evenly where no trace says more.
  TokenCount capacity(const LayerShape& shape, int /*head*/, const Sizing& sizing) const override {
    if (sizing.tokens == kAll || even_) return sizing.tokens;
    return sizing.tokens * shape.heads * shape.layers;
  }

  kvspan::Shares share_out(std::span<const LayerShow> layers, const Sizing& sizing) const override {
    Sharers sharers;
    for (const LayerShow& layer : layers) {
      for (std::size_t h = 0; h < layer.scores.size(); ++h)
        sharers.add(layer.tokens[h], layer.scores[h], layer.protected_[h]);
    }
    const std::vector<TokenCount> keep = filled(std::move(sharers), sizing.tokens, alpha_);
    kvspan::Shares out;
    auto next = keep.begin();
    for (const LayerShow& layer : layers) {
      out.emplace_back(next, next + std::ssize(layer.scores));
      next += std::ssize(layer.scores);
    }
    return out;
  }

 private:
  double alpha_;
  bool even_;
};

// The same over the heads of one layer.
class RankingOfLayer final : public Budget {
 public:
  RankingOfLayer(double alpha, bool even) : alpha_(alpha), even_(even) {}
  bool content_free() const override { return false; }
  bool within_layer() const override { return true; }
  TokenCount capacity(const LayerShape& shape, int /*head*/, const Sizing& sizing) const override {
    return sizing.tokens == kAll || even_ ? sizing.tokens : sizing.tokens * shape.heads;
  }
  void counts(const View& /*view*/, const Scores& scores, const Sizing& sizing,
              std::span<TokenCount> keep) const override {
    Sharers sharers;
    for (std::size_t h = 0; h < keep.size(); ++h)
      sharers.add(scores.entries[h], scores.values[h], scores.protected_[h]);
    std::ranges::copy(filled(std::move(sharers), sizing.tokens, alpha_), keep.begin());
  }

 private:
  double alpha_;
  bool even_;
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

void share_out_by_one_ranking(Recipe& recipe, const Geometry& geometry, double alpha, Over over) {
  const bool even = geometry.trace == nullptr;
  if (over == Over::model) {
    recipe.shape = own(std::make_shared<OneRanking>(alpha, even));
  } else {
    recipe.shape = own(std::make_shared<RankingOfLayer>(alpha, even));
  }
  if (even) {
    recipe.notes.push_back(
        fmt::format("the prompt decides how {} share the budget; evenly here, which gives its sum",
                    over == Over::model ? "layers and heads" : "the heads of a layer"));
  }
  const int heads = geometry.shape(0, recipe.scorer.value.per_query_head).heads;
  recipe.charge.once += 4LL * geometry.layers() * heads;
  // Who keeps a number an entry has its scores already.
  if (over == Over::model && recipe.charge.entry == 0)
    charge_shown_scores(recipe, geometry, geometry.evict_point);
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
