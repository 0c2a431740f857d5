// SPDX-License-Identifier: Apache-2.0
// Shared by policies that ask for the context again (kvzip, kvcompose): how much the rows of a
// replay look at each entry.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/whole_trace.h"

namespace kvspan::policies {

struct ReplaySettings {
  std::string policy;     // for messages
  TokenCount sinks = 0;   // first tokens that every row reads
  bool plus = false;      // weigh by what a row reads and what an entry adds
  bool of_model = false;  // p with the model's own window, soft cap and sink logits
  Group group = Group::max;
  std::vector<Probe> probes = {};  // empty: no trace
  RowIndex at = 0;                 // tokens that are read before the model is asked
};

// Reads the passes of a trace's replay, and what `plus` asks for; returns the most rows of one.
// Errors: TraceError where nothing was asked.
RowIndex read_probes(const Trace& trace, ReplaySettings& settings);
// The same for a run. REQUIRES: there is a trace. Errors: ConfigError where this run evicts before,
// too.
RowIndex read_replay(const Geometry& geometry, ReplaySettings& settings);

// [kv_heads][tokens read before the model was asked]
using ReplayColumns = std::vector<std::vector<double>>;

// The largest probability that a row of each query head gives to an entry, reduced over the group;
// 0 for tokens that nobody asks for. A row sees the first `sinks` tokens, those that its pass asks
// for, and the rows of the pass up to itself.
[[nodiscard]] std::shared_ptr<const ReplayColumns> replay_columns(const Geometry& geometry,
                                                                  const ReplaySettings& settings,
                                                                  int layer);

// The same, each time anew.
[[nodiscard]] ReplayColumns look_at_layer(const Trace& trace, int layer,
                                          const ReplaySettings& settings);

// Ranks by them. Errors: ConfigError where a decision asks for what the replay cannot know.
class ReplayScores : public Scorer {
 public:
  ReplayScores(ReplaySettings settings, Geometry geometry)
      : settings_(std::move(settings)), geometry_(std::move(geometry)) {}
  Needs needs() const override { return {.q = true, .k = true, .v = settings_.plus}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 protected:
  [[nodiscard]] std::shared_ptr<const ReplayColumns> known(
      const View& view, std::span<const TokenIndex> entries) const;

 private:
  ReplaySettings settings_;
  Geometry geometry_;
};

// What is charged while the model is asked: the K and V of a pass of so many rows.
void charge_replay(Recipe& recipe, const Geometry& geometry, RowIndex rows);

}  // namespace kvspan::policies
