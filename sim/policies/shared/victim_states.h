// SPDX-License-Identifier: Apache-2.0
// Shared by methods whose victims live on in a state of constant size (less, momentkv): one for
// each KV head, which adds to the attention of later rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "sim/policies/shared/groups.h"

namespace kvspan::policies {

// What absorbs the victims of one KV head, and adds them to the attention of a row: `max` is the
// row's largest logit, which numerator and denominator are relative to.
class VictimState {
 public:
  virtual ~VictimState() = default;
  virtual void absorb(const View& view, std::span<const TokenIndex> victims) = 0;
  virtual void add(std::span<const float> q, double max, std::span<double> numerator,
                   double& denominator) const = 0;
};

// exp without overflow: what a victim adds relative to the row's own maximum.
[[nodiscard]] inline double bounded_exp(double x) { return std::exp(std::min(x, 300.0)); }

// Makes the state of a KV head when it has its first victims.
using MakeVictimState = std::function<std::unique_ptr<VictimState>(const View& view, int head)>;

class VictimStates final : public Store {
 public:
  VictimStates(MakeVictimState make, const LayerShape& shape)
      : make_(std::move(make)), group_(shape.group()), states_(index(shape.heads)) {}
  void age(const View& view, Decision& out) override {
    if (!view.measures_output()) return;
    for (std::size_t i = 0; i < out.evictions.size();) {  // by head
      const int head = out.evictions[i].head;
      std::vector<TokenIndex> victims;
      for (; i < out.evictions.size() && out.evictions[i].head == head; ++i)
        victims.push_back(out.evictions[i].token);
      auto& state = states_[index(head)];
      if (!state) state = make_(view, head);
      state->absorb(view, victims);
      absorbed_ = true;
    }
  }
  bool adds_output() const override { return absorbed_; }
  void add_output(int query_head, std::span<const float> q, double max, std::span<double> numerator,
                  double& denominator) override {
    const auto& state = states_[index(query_head / group_)];
    if (state) state->add(q, max, numerator, denominator);
  }

 private:
  MakeVictimState make_;
  int group_;
  std::vector<std::unique_ptr<VictimState>> states_;  // [heads]
  bool absorbed_ = false;
};

}  // namespace kvspan::policies
