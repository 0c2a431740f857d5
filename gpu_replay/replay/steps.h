// SPDX-License-Identifier: Apache-2.0
// A ledger as what a pool is told: who leaves, and who is held otherwise, at which row.
#pragma once

#include <span>
#include <vector>

#include "gpu_replay/pool/kv_pool.h"
#include "sim/ledger/ledger.h"

namespace kvspan::gpu_replay {

// Of one layer.
class LayerSteps {
 public:
  // What happens at `row`, before it attends: at the end of the pass before, where a pass begins.
  // One step for an entry; those that leave the device first.
  [[nodiscard]] std::span<const Step> at(RowIndex row) const;
  // Whether an entry leaves the device then, for good or not.
  [[nodiscard]] bool leaves_at(RowIndex row) const { return leaves_[index(row)] != 0; }

 private:
  friend std::vector<LayerSteps> steps_of(const Ledger& ledger);
  std::vector<Step> steps_;
  std::vector<std::size_t> first_;  // [tokens + 1] in steps_
  std::vector<char> leaves_;        // [tokens]
};

// [layers]
[[nodiscard]] std::vector<LayerSteps> steps_of(const Ledger& ledger);

}  // namespace kvspan::gpu_replay
