// SPDX-License-Identifier: Apache-2.0
// The ledger: when every entry of a run was born and died, and how it was held in between. All
// figures except fidelity are pure functions of it (metrics.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/policy/policy.h"

namespace kvspan {

struct Ledger {
  PassPlan plan;
  int layers = 0;
  int model_layers = 0;
  int heads = 0;  // stored heads: kv_heads, or query_heads
  int query_heads = 0;
  std::vector<std::int64_t> sliding_window;  // [layers] of the model, 0: none; empty: none at all
  std::vector<Representation> representations;  // [0]: as born
  bool waits_for_layers = false;    // at the evict point all layers attend before any is cut
  Charge charge;                    // entry and once; what comes and goes is in `state`
  std::vector<std::int64_t> state;  // [tokens] bytes of Charge::during, or empty

  std::vector<std::uint32_t>
      death;  // [layers, heads, tokens] row at which the entry dies; N: never
  std::vector<std::vector<Change>> changes;  // [layers] changes of representation, by row
  // Entries read in each row, summed over layers and heads, where a selector chose them; else
  // empty.
  std::vector<std::int64_t> selected;  // [tokens]
  // Which of them those were, in a sample of rows; empty unless asked for.
  std::vector<RowIndex> read_rows;  // [R] ascending
  std::vector<std::uint8_t>
      reads;  // [layers, heads, R, ceil(tokens / 8)] entry t: bit t % 8 of byte
              // t / 8; union over the query heads of a stored head
  // Score and rank of each entry when it was evicted; empty unless asked for.
  std::vector<float> score;        // [layers, heads, tokens], NaN: none
  std::vector<std::int32_t> rank;  // [layers, heads, tokens], -1: none

  // Overhead of the whole model while `row` attends, beside what entries cost.
  [[nodiscard]] std::int64_t fixed_overhead(RowIndex row) const {
    return charge.once + (state.empty() ? 0 : state[static_cast<std::size_t>(row)]);
  }
  [[nodiscard]] std::size_t offset(int layer, int head) const {
    return (static_cast<std::size_t>(layer) * static_cast<std::size_t>(heads) +
            static_cast<std::size_t>(head)) *
           static_cast<std::size_t>(plan.tokens);
  }
  // Where the bits of a sampled row begin in `reads`, and how many bytes they are.
  [[nodiscard]] std::size_t reads_bytes() const {
    return (static_cast<std::size_t>(plan.tokens) + 7) / 8;
  }
  [[nodiscard]] std::size_t reads_offset(int layer, int head, std::size_t sample) const {
    const std::size_t stored = static_cast<std::size_t>(layer) * static_cast<std::size_t>(heads) +
                               static_cast<std::size_t>(head);
    return (stored * read_rows.size() + sample) * reads_bytes();
  }
  [[nodiscard]] std::span<const std::uint32_t> deaths(int layer, int head) const {
    return std::span(death).subspan(offset(layer, head), static_cast<std::size_t>(plan.tokens));
  }
};

}  // namespace kvspan
