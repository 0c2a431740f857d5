// SPDX-License-Identifier: Apache-2.0
// The rows of a run and the passes that they fall into.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "sim/base/types.h"

namespace kvspan {

// One forward call over rows [begin, end).
struct Pass {
  RowIndex begin = 0;
  RowIndex end = 0;
  RowIndex evict_point =
      0;  // n': where every prompt-end rule acts (the prompt's end unless --evict-at)
  RowIndex prompt_end = 0;         // n: rows before it count as prefill
  std::span<const RowIndex> ends;  // ends of all passes so far, this one included
  [[nodiscard]] RowIndex rows() const { return end - begin; }
  [[nodiscard]] bool is_prompt_chunk() const { return end <= evict_point; }
  [[nodiscard]] bool is_evict_point() const { return end == evict_point; }
};

// The rows of a run and how they fall into passes.
struct PassPlan {
  RowIndex tokens = 0;         // N
  RowIndex prompt = 0;         // n: rows before it are prefill
  RowIndex evict_point = 0;    // n': where prompt-end rules act
  std::vector<RowIndex> ends;  // ends of all passes, ascending; the last is N
};

// Prefill passes of `chunk` rows (0: one pass) up to evict_point, one pass [evict_point, prompt) if
// they differ, then one pass a decode row; every row of `cuts` ends a pass, too.
// Errors: ConfigError unless 0 < evict_point <= prompt <= tokens and chunk >= 0.
[[nodiscard]] PassPlan make_passes(RowIndex tokens, RowIndex prompt, RowIndex evict_point,
                                   RowIndex chunk, const std::vector<RowIndex>& cuts = {});

// `count` rows of [begin, end), evenly spread: at begin + floor((2i + 1) (end - begin) / 2 count).
// REQUIRES: 0 <= count <= end - begin, so that they differ.
[[nodiscard]] std::vector<RowIndex> spread_rows(RowIndex begin, RowIndex end, RowIndex count);

// Pass `index` of a plan.
[[nodiscard]] Pass pass_at(const PassPlan& plan, std::size_t index);

}  // namespace kvspan
