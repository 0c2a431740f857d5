// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/policy.h"

#include <algorithm>
#include <numeric>

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
  std::vector<std::size_t> order(entries.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto better = [&](std::size_t a, std::size_t b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  };
  const auto boundary = order.begin() + static_cast<std::ptrdiff_t>(keep);
  std::nth_element(order.begin(), boundary, order.end(), better);
  for (auto it = boundary; it != order.end(); ++it) leaves[*it] = 1;
}

PassPlan passes_of(const Policy& policy, const Geometry& geometry) {
  return make_passes(geometry.tokens, geometry.prompt, geometry.evict_point - policy.early,
                     geometry.chunk, policy.cuts);
}

}  // namespace kvspan
