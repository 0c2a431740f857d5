// SPDX-License-Identifier: Apache-2.0
// The second stage of RocketKV: which entries a generated token reads.
#pragma once

#include <span>
#include <vector>

#include "sim/policy/policy.h"

namespace kvspan::policies {

// How the budget of a row is spent. Source: infllm_utils.py of the authors.
struct RocketPlan {
  TokenCount prompt = 0;  // entries a head keeps of the prompt
  TokenCount read = 0;    // entries a row reads
  TokenCount page = 1;    // entries whose largest coordinates are compared at once
  int channels = 0;       // of a query that are compared
};
//   tokens, generated   of the whole sequence, and of them generated
//   budget              entries that a row may move
//   exponent            share of the saving (in logarithms) that the prompt's eviction brings;
//                       below 0: chosen by the saving
[[nodiscard]] RocketPlan rocket_plan(RowIndex tokens, RowIndex generated, TokenCount budget,
                                     int head_dim, double exponent);

// One set for the query heads of a KV head: the best by a softmax of what pages and the largest
// channels of the queries promise, mean of the heads.
class PagesAndChannels final : public Selector {
 public:
  explicit PagesAndChannels(const RocketPlan& plan) : plan_(plan) {}
  Needs needs() const override { return {.q = true, .k = true}; }
  void select(const View& view, std::span<Reads> reads) override;

 private:
  [[nodiscard]] std::vector<TokenIndex> choose(const View& view, int head) const;
  RocketPlan plan_;
};

}  // namespace kvspan::policies
