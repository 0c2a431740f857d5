// SPDX-License-Identifier: Apache-2.0
// Internal to the engine: the blocks of rows of a replay, and the walk of one layer through them.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "sim/replay/block_terms.h"
#include "sim/replay/engine.h"
#include "sim/replay/lane.h"
#include "sim/replay/lane_group.h"
#include "sim/replay/memory_plan.h"

namespace kvspan {

// Everything of a replay that does not depend on the layer.
struct WalkPlan {
  const Trace& trace;
  const Lineup& lineup;
  FidelityPlan fidelity = {};
  std::vector<char> observed = {};        // [tokens] somebody looks at the row
  std::vector<char> needed = {};          // [tokens] somebody observes or measures it
  std::vector<RowIndex> block_ends = {};  // ascending
  RowIndex block_rows = 0;
  bool values = false;  // outputs are compared on the way
  ScorePass* scores = nullptr;
  std::vector<char> apart = {};  // [policies] measured by `scores`, when a layer has been decided
  FidelityPlan unmeasured = {};  // of these, on the way
};
[[nodiscard]] WalkPlan plan_walk(const Trace& trace, const Lineup& lineup,
                                 const EngineOptions& options, RowIndex block_rows);

// Of a run in which nobody has died yet.
[[nodiscard]] Ledger empty_ledger(const TraceMeta& m, const Policy& policy, const PassPlan& passes,
                                  const EngineOptions& options);

// One layer: computes each block of attention once, and shows it to every policy.
class LayerWalk {
 public:
  // Writes into replays[p].ledger and boards[p].
  LayerWalk(const WalkPlan& plan, int layer, std::vector<Replay>& replays,
            std::vector<DecisionBoard>& boards);
  // REQUIRES: blocks come in order.
  void step(RowIndex begin, RowIndex end);
  // After the last block; `check` is called now and then, and may throw.
  void measure(const std::function<void()>& check);
  [[nodiscard]] Lane& lane(std::size_t policy) { return *lanes_[policy]; }
  [[nodiscard]] LayerFidelity& fidelity(std::size_t policy) {
    return apart_[policy] ? *apart_[policy] : lanes_[policy]->fidelity();
  }

 private:
  const WalkPlan& plan_;
  int layer_;
  const std::vector<Replay>& replays_;
  LayerScores scores_;
  BlockTerms terms_;
  bool measured_;  // in some head
  LaneGroup group_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<std::optional<LayerFidelity>> apart_;  // [policies]
  std::vector<Lane*> members_;                       // of the group: lanes_
};

// Walks every layer through the blocks that end by row `until`, several layers in flight.
//   stepped    a block is done; from any thread
//   finished   a layer is done; from any thread, layers in any order
// Errors: Interrupted; those of replay().
struct WalkHooks {
  std::function<void(RowIndex begin, RowIndex end)> stepped;
  std::function<void(int layer, LayerWalk& walk)> finished;
};
void walk_layers(const WalkPlan& plan, const EngineOptions& options, int in_flight, RowIndex until,
                 std::vector<Replay>& replays, std::vector<DecisionBoard>& boards,
                 const WalkHooks& hooks);

}  // namespace kvspan
