// SPDX-License-Identifier: Apache-2.0
// Internal to the engine: the lanes of one layer that walk the same rows. What they need not do
// twice is done once.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "sim/replay/lane.h"

namespace kvspan {

class LaneGroup {
 public:
  //   rankings  [lanes] see shared_ranking()
  explicit LaneGroup(const std::vector<std::string>& rankings);
  // What the lanes are made with.
  [[nodiscard]] SharedWork& shared() { return shared_; }
  // The next block, for all of them.
  //   prompt  rows of it
  //   shape   of the layer, by stored heads
  // REQUIRES: `lanes` in the order of their rankings; blocks come in order, without gaps.
  void process(const RowBlock& block, RowIndex prompt, const LayerShape& shape,
               std::span<Lane* const> lanes);

 private:
  // Places of the lanes of one ranking, which stand together; a lane without one stands alone.
  struct Kin {
    std::string ranking;
    std::vector<std::size_t> lanes;
  };
  void process(const RowBlock& block, std::span<Lane* const> lanes, const Kin& kin);

  SharedWork shared_;
  std::vector<Kin> kin_;
};

}  // namespace kvspan
