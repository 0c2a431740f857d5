// SPDX-License-Identifier: Apache-2.0
#include "sim/policy/passes.h"

#include <algorithm>

#include <fmt/format.h>

#include "sim/base/error.h"

namespace kvspan {

PassPlan make_passes(RowIndex tokens, RowIndex prompt, RowIndex evict_point, RowIndex chunk,
                     const std::vector<RowIndex>& cuts) {
  if (prompt < 1 || prompt > tokens) {
    throw ConfigError(fmt::format("prompt: found {}, expected 1 to {} tokens", prompt, tokens));
  }
  if (evict_point < 1 || evict_point > prompt) {
    throw ConfigError(
        fmt::format("evict-at: found row {}, expected 1 to {} (the prompt)", evict_point, prompt));
  }
  if (chunk < 0)
    throw ConfigError(fmt::format("chunk: found {}, expected 0 (one pass) or more tokens", chunk));
  PassPlan plan{tokens, prompt, evict_point, {}};
  if (chunk > 0) {
    for (RowIndex end = chunk; end < evict_point; end += chunk) plan.ends.push_back(end);
  }
  plan.ends.push_back(evict_point);
  if (evict_point < prompt) plan.ends.push_back(prompt);
  for (RowIndex row = prompt; row < tokens; ++row) plan.ends.push_back(row + 1);
  if (!cuts.empty()) {
    plan.ends.insert(plan.ends.end(), cuts.begin(), cuts.end());
    std::sort(plan.ends.begin(), plan.ends.end());
    plan.ends.erase(std::unique(plan.ends.begin(), plan.ends.end()), plan.ends.end());
  }
  return plan;
}

std::vector<RowIndex> spread_rows(RowIndex begin, RowIndex end, RowIndex count) {
  std::vector<RowIndex> rows;
  for (RowIndex i = 0; i < count; ++i)
    rows.push_back(begin + (2 * i + 1) * (end - begin) / (2 * count));
  return rows;
}

Pass pass_at(const PassPlan& plan, std::size_t index) {
  Pass pass;
  pass.begin = index == 0 ? 0 : plan.ends[index - 1];
  pass.end = plan.ends[index];
  pass.evict_point = plan.evict_point;
  pass.prompt_end = plan.prompt;
  pass.ends = std::span(plan.ends).first(index + 1);
  return pass;
}

}  // namespace kvspan
