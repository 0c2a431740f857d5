// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/policy.h"

#include <algorithm>
#include <functional>

namespace kvspan {

bool Schedule::due(const Pass& pass) const {
  if (pass.is_evict_point()) return evict_point;
  if (pass.is_prompt_chunk()) return every_chunk;
  if (decode_every == 0) return false;
  const RowIndex gone = phase - pass.evict_point;
  return (pass.end + gone) / decode_every > (pass.begin + gone) / decode_every;
}

void pick_top(const View& /*view*/, int /*head*/, std::span<const TokenIndex> entries,
              std::span<const double> scores, TokenCount keep, std::vector<char>& leaves) {
  if (static_cast<std::size_t>(keep) + 1 == entries.size()) {  // every decode row of most policies
    std::size_t worst = 0;
    for (std::size_t i = 1; i < scores.size(); ++i) {
      if (scores[i] <= scores[worst]) worst = i;
    }
    leaves[worst] = 1;
    return;
  }
  if (keep <= 0) {
    std::fill(leaves.begin(), leaves.end(), 1);
    return;
  }
  // Everything beyond the last place leaves; of those that tie with it, the newest.
  std::vector<double> best(scores.begin(), scores.end());
  const auto last = best.begin() + static_cast<std::ptrdiff_t>(keep - 1);
  std::nth_element(best.begin(), last, best.end(), std::greater<>());
  const double least = *last;
  auto ties = keep - std::count_if(best.begin(), last, [&](double s) { return s > least; });
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const bool stays = scores[i] > least || (scores[i] == least && ties-- > 0);
    leaves[i] = stays ? 0 : 1;
  }
}

std::optional<std::size_t> coupled_rule(const Policy& policy) {
  for (std::size_t r = 0; r < policy.rules.size(); ++r) {
    const Rule& rule = policy.rules[r];
    if (rule.budget && rule.budget->over_layers() != nullptr && rule.schedule.evict_point) return r;
  }
  return std::nullopt;
}

PassPlan passes_of(const Policy& policy, const Geometry& geometry) {
  return make_passes(geometry.tokens, geometry.prompt, geometry.evict_point - policy.early,
                     geometry.chunk, policy.cuts);
}

}  // namespace kvspan
