// SPDX-License-Identifier: Apache-2.0
// `replay --slots`: how well the entries of each head could lie in blocks that nobody moves.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/optimum/slots.h"
#include "sim/run/result.h"

namespace kvspan::cli {

// One run with blocks of one size; sums over layers and heads.
struct SlotsFound {
  std::int64_t block_size = 0;
  std::int64_t slots = 0;       // that are needed: most entries at once, head by head
  std::int64_t entry_rows = 0;  // entries held, summed over rows
  optimum::BlockUse in_order, first_fit, best_found, least;
  // Of the slots of held blocks, over all rows, those without an entry.
  [[nodiscard]] double empty(const optimum::BlockUse& use) const;
};

// Errors: Interrupted.
[[nodiscard]] std::vector<SlotsFound> find_slots(const Ledger& ledger,
                                                 const std::vector<std::int64_t>& block_sizes,
                                                 const std::function<bool()>& cancelled);

//   found  [runs][block sizes]
void print_slots(const RunReport& report, const std::vector<std::vector<SlotsFound>>& found);
[[nodiscard]] nlohmann::json slots_json(const std::vector<SlotsFound>& found);

}  // namespace kvspan::cli
