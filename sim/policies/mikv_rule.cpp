// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/mikv_rule.h"

#include <cmath>
#include <utility>

namespace kvspan::policies {

std::optional<int> Tiers::demote(int head, TokenIndex token) {
  low_[index(head)].insert(token);
  return kLow;
}

void Tiers::age(const View& view, Decision& out) {
  const std::size_t demoted = out.changes.size();
  old_high_ = high_below_;
  if (settings_.high < 16 && view.pass().end >= view.pass().evict_point) enter_high(view, out);
  if (!view.measures_output() || out.changes.empty()) return;
  if (balancer_.empty()) balance(view);
  for (std::size_t i = 0; i < out.changes.size(); ++i) {
    const Change& change = out.changes[i];
    Rewrite rewrite{change.head, change.token, view.key(change.head, change.token),
                    view.value(change.head, change.token)};
    // An older entry was in the high tier before.
    if (settings_.high < 16 && (i >= demoted || change.token < old_high_[index(change.head)]))
      hold(rewrite, settings_.high);
    if (change.representation == kLow) hold(rewrite, settings_.low);
    out.rewrites.push_back(std::move(rewrite));
  }
}

void Tiers::enter_high(const View& view, Decision& out) {
  for (int head = 0; head < view.shape().heads; ++head) {
    const Alive alive(view, head, out);
    for (const TokenIndex t : alive.from(high_below_[index(head)])) {
      if (low_[index(head)].count(t) == 0) out.changes.push_back({view.pass().end, head, t, kHigh});
    }
    high_below_[index(head)] = static_cast<TokenIndex>(view.pass().end);
  }
}

void Tiers::hold(Rewrite& rewrite, int bits) const {
  const std::vector<float>& b = balancer_[index(rewrite.kv_head)];
  for (std::size_t c = 0; c < rewrite.k.size(); ++c) rewrite.k[c] *= b[c];
  round_trip_groups(rewrite.k, bits, settings_.group_of(std::ssize(rewrite.k)));
  for (std::size_t c = 0; c < rewrite.k.size(); ++c) rewrite.k[c] /= b[c];
  round_trip_groups(rewrite.v, bits, settings_.group_of(std::ssize(rewrite.v)));
}

void Tiers::balance(const View& view) {
  const LayerShape& shape = view.shape();
  const auto widen_max = [](const std::vector<float>& x, std::vector<float>& most) {
    for (std::size_t c = 0; c < x.size(); ++c) most[c] = std::max(most[c], std::abs(x[c]));
  };
  for (int head = 0; head < shape.heads; ++head) {
    balancer_.emplace_back(index(shape.k_dim), 1.0F);
    if (!settings_.balancer) continue;
    std::vector<float> q(index(shape.k_dim), 0.0F);
    std::vector<float> k = q;
    for (RowIndex row = 0; row < std::min(view.pass().evict_point, view.pass().end); ++row) {
      for (int g = 0; g < shape.group(); ++g)
        widen_max(view.query(head * shape.group() + g, row), q);
      widen_max(view.key(head, static_cast<TokenIndex>(row)), k);
    }
    for (std::size_t c = 0; c < q.size(); ++c) {
      if (q[c] > 0 && k[c] > 0) balancer_.back()[c] = std::sqrt(q[c] / k[c]);
    }
  }
}

}  // namespace kvspan::policies
