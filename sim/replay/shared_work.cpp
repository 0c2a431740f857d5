// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/shared_work.h"

#include <tbb/parallel_for.h>

#include "sim/attention/kernels.h"

namespace kvspan {

using kernels::padded;

bool holds_plainly(const Policy& policy) {
  return !policy.prefill_reads && !policy.selector && !policy.store && !policy.renumbers;
}

std::string shared_ranking(const Policy& policy) {
  return policy.rules.empty() || !holds_plainly(policy) ? "" : policy.rules.front().ranking;
}

std::vector<std::string> shared_rankings(const std::vector<Policy>& policies) {
  std::vector<std::string> out;
  for (const Policy& policy : policies) out.push_back(shared_ranking(policy));
  return out;
}

SharedScores::SharedScores(const std::vector<std::string>& rankings) {
  std::set<std::string> seen;
  for (const std::string& ranking : rankings) {
    if (!ranking.empty() && !seen.insert(ranking).second) rankings_.insert(ranking);
  }
}

const KnownScores* SharedScores::find(const Key& key) const {
  const std::lock_guard lock(mutex_);
  const auto at = known_.find(key);
  return at == known_.end() ? nullptr : &at->second;
}

void SharedScores::add(const Key& key, std::span<const double> values, double slack) {
  Key any = key;
  any.first = -1;
  any.count = 0;
  const std::lock_guard lock(mutex_);
  // One set of entries a head: those of budgets that protect others are not worth the memory.
  const auto at = known_.lower_bound(any);
  if (at != known_.end()) {
    any.first = at->first.first;
    any.count = at->first.count;
    if (any == at->first) return;
  }
  known_.try_emplace(key, KnownScores{{values.begin(), values.end()}, slack});
}

std::shared_ptr<const void> SharedScores::state(const std::string& ranking, RowIndex end) const {
  const std::lock_guard lock(mutex_);
  const auto at = states_.find({ranking, end});
  return at == states_.end() ? nullptr : at->second;
}

void SharedScores::add_state(const std::string& ranking, RowIndex end,
                             const std::shared_ptr<const void>& state) {
  const std::lock_guard lock(mutex_);
  states_.try_emplace({ranking, end}, state);
}

bool SharedScores::begun(const std::string& ranking) const {
  const std::lock_guard lock(mutex_);
  const auto at = known_.lower_bound({.ranking = ranking});
  if (at != known_.end() && at->first.ranking == ranking) return true;
  const auto state = states_.lower_bound({ranking, 0});
  return state != states_.end() && state->first.first == ranking;
}

void SharedScores::clear() {
  known_.clear();
  states_.clear();
}

int how_it_looks(const Rule& rule) {
  return (rule.domain == Domain::newborn ? 1 : 0) + (rule.window_in_pass ? 2 : 0) +
         (rule.probe_with_prompt_tail ? 4 : 0);
}

void SharedColumns::add(const RowBlock& block, const LayerShape& shape) {
  const auto keys = static_cast<std::size_t>(padded(block.tokens));
  if (!used()) {
    columns_.sums.assign(index(shape.query_heads), std::vector<double>(keys, 0.0));
    columns_.slack.assign(index(shape.query_heads), 0.0);
  }
  const std::vector<float> all(keys, 1.0F);
  tbb::parallel_for(0, shape.query_heads, [&](int q) {
    std::vector<const float*> terms;
    std::vector<double> inverse;
    for (const RowIndex row : block.rows) {
      const RowTerms& full = block.full(q, row);
      if (!(full.sum + full.sink > 0)) continue;
      terms.push_back(full.terms);
      inverse.push_back(1.0 / (full.sum + full.sink));
    }
    if (terms.empty()) return;
    kernels::add_columns(terms.data(), inverse.data(), std::ssize(terms), all.data(),
                         padded(block.rows.back() + 1), columns_.sums[index(q)].data());
  });
}

}  // namespace kvspan
