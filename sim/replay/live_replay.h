// SPDX-License-Identifier: Apache-2.0
// A replay whose rows are still being written, because a model runs under the policy: the lanes,
// ledger and figures of replay(), and beside them what every row reads, which is what the model
// goes on with. Who leaves is gone for all later rows, in keys, values and decisions.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "sim/policy/model_budget.h"
#include "sim/replay/engine.h"
#include "sim/replay/replay_view.h"

namespace kvspan {

class Lane;
class LaneGroup;

// Why a running model cannot serve the policy, in one line; nullopt: it can.
[[nodiscard]] std::optional<std::string> why_not_live(const Policy& policy,
                                                      const Requirements& asked);

class LiveReplay;

// Replays that begin with the same rows: what they need not do twice there is done once.
class LiveGroup {
 public:
  //   policies  of the replays, in their order
  LiveGroup(const std::vector<const Policy*>& policies, const Geometry& geometry);
  ~LiveGroup();
  LiveGroup(const LiveGroup&) = delete;
  LiveGroup& operator=(const LiveGroup&) = delete;

  // The next block of a layer, for all of them: rows that have read the full cache.
  // REQUIRES: as LiveReplay::process(); layers one at a time where a policy needs it.
  void process(int layer, const RowBlock& block, std::span<LiveReplay* const> replays);

 private:
  friend class LiveReplay;
  const Geometry& geometry_;
  std::vector<std::unique_ptr<LaneGroup>> layers_;
};

// One policy on all layers.
class LiveReplay {
 public:
  // `trace` has room for geometry.tokens rows. REQUIRES: a qkv trace with v; `policy` and `asked`
  // are of `geometry`, outlive this, and why_not_live() has nothing against them.
  // shares: what a budget of all layers left every head; empty: the policy has none, or this object
  // finds them out, and ends at its evict point.
  // group: it walks with others, until it parts; null: alone.
  LiveReplay(const Trace& trace, const Geometry& geometry, const Policy& policy,
             const Requirements& asked, Shares shares = {}, LiveGroup* group = nullptr);
  ~LiveReplay();
  LiveReplay(const LiveReplay&) = delete;
  LiveReplay& operator=(const LiveReplay&) = delete;

  // The next block of a layer; policies that reuse what lower layers decided need these first.
  //   outputs  [rows of the block][query_heads][v_dim]; empty: the model has them, as rows before
  //            Requirements::changes_from read the full cache
  // REQUIRES: blocks of a layer come in order; with outputs, all rows of the block are computed,
  // with values. Errors: PolicyError when the policy breaks its contract.
  void process(int layer, const RowBlock& block, std::span<float> outputs);
  // Ends the walk with others; from here on only process() of its own is called.
  void part();
  // Of a policy with coupled_rule(): what stays in every head. REQUIRES: constructed without
  // shares; all layers have been processed up to the evict point.
  [[nodiscard]] Shares share_out();
  // What became of it, as if the trace had ended after `tokens` rows. Ends the use of this object.
  // REQUIRES: they have all been processed.
  [[nodiscard]] Replay finish(RowIndex tokens);

  [[nodiscard]] const FidelityPlan& fidelity() const { return fidelity_; }
  // Of one object, at most, beside the trace.
  [[nodiscard]] static std::int64_t memory_bytes(const Trace& trace, const Geometry& geometry,
                                                 const Policy& policy, const Requirements& asked);

 private:
  friend class LiveGroup;
  const Policy& policy_;
  const PassPlan& passes_;
  FidelityPlan fidelity_;
  Replay replay_;
  DecisionBoard board_;
  std::vector<std::unique_ptr<Lane>> lanes_;  // [layers]
};

}  // namespace kvspan
