// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/live_replay.h"

#include <algorithm>

#include <fmt/format.h>

#include "sim/replay/lane_group.h"
#include "sim/replay/layer_walk.h"
#include "sim/replay/memory_plan.h"

namespace kvspan {
namespace {

// The ledger as it would be if there had been `tokens` rows. The last pass decides nothing.
Ledger cut(Ledger&& whole, RowIndex tokens) {
  const auto kept = static_cast<std::size_t>(tokens);
  std::vector<std::uint32_t> death;
  for (int l = 0; l < whole.layers; ++l) {
    for (int h = 0; h < whole.heads; ++h) {
      for (const std::uint32_t row : whole.deaths(l, h).first(kept))
        death.push_back(std::min(row, static_cast<std::uint32_t>(tokens)));
    }
  }
  Ledger out = std::move(whole);
  out.death = std::move(death);
  out.plan.tokens = tokens;
  std::erase_if(out.plan.ends, [&](RowIndex end) { return end >= tokens; });
  out.plan.ends.push_back(tokens);
  for (auto& changes : out.changes)
    std::erase_if(changes, [&](const Change& change) { return change.row >= tokens; });
  if (!out.state.empty()) out.state.resize(kept);
  if (!out.selected.empty()) out.selected.resize(kept);
  return out;
}

}  // namespace

std::optional<std::string> why_not_live(const Policy& policy, const Requirements& asked) {
  const auto because = [&](const char* why) {
    return fmt::format("{} cannot run on a model: {}", policy.spec, why);
  };
  if (policy.bound) return because("it reads rows to come, which a model has not computed");
  if (policy.reads_trace) return because("it looks rows up in a whole trace");
  const bool patched = std::any_of(policy.rules.begin(), policy.rules.end(),
                                   [](const Rule& rule) { return rule.probe_with_prompt_tail; });
  if (patched && asked.changes_from < asked.passes.evict_point) {
    return because(
        "it scores every chunk with the prompt's last rows (variant=patched), which come later");
  }
  return std::nullopt;
}

LiveGroup::LiveGroup(const std::vector<const Policy*>& policies, const Geometry& geometry)
    : geometry_(geometry) {
  std::vector<std::string> rankings;
  for (const Policy* policy : policies) rankings.push_back(shared_ranking(*policy));
  for (int l = 0; l < geometry.layers(); ++l)
    layers_.push_back(std::make_unique<LaneGroup>(rankings));
}

LiveGroup::~LiveGroup() = default;

void LiveGroup::process(int layer, const RowBlock& block, std::span<LiveReplay* const> replays) {
  std::vector<Lane*> lanes;
  for (const LiveReplay* replay : replays) lanes.push_back(replay->lanes_[index(layer)].get());
  layers_[index(layer)]->process(block, geometry_.prompt, geometry_.shape(layer, false), lanes);
}

LiveReplay::LiveReplay(const Trace& trace, const Geometry& geometry, const Policy& policy,
                       const Requirements& asked, Shares shares, LiveGroup* group)
    : policy_(policy),
      passes_(asked.passes),
      fidelity_(plan_fidelity(geometry.tokens, geometry.prompt, 0, 0)),
      board_(geometry.layers()) {
  board_.shares = std::move(shares);
  fidelity_.output_error = true;
  fidelity_.spans = trace.meta().spans;
  replay_.ledger = empty_ledger(trace.meta(), policy, asked.passes, {});
  for (int l = 0; l < geometry.layers(); ++l) {
    lanes_.push_back(std::make_unique<Lane>(
        policy, asked.passes, trace, geometry.shape(l, policy.per_query_head), fidelity_,
        replay_.ledger, board_, group != nullptr ? &group->layers_[index(l)]->shared() : nullptr));
  }
}

LiveReplay::~LiveReplay() = default;

void LiveReplay::process(int layer, const RowBlock& block, std::span<float> outputs) {
  lanes_[static_cast<std::size_t>(layer)]->process(block, outputs);
}

void LiveReplay::part() {
  for (const auto& lane : lanes_) lane->part();
}

Shares LiveReplay::share_out() {
  std::vector<LayerShow> shown;
  for (const auto& lane : lanes_) shown.push_back(std::move(lane->shown()));
  const Rule& rule = policy_.rules[*coupled_rule(policy_)];
  const auto at = std::ranges::lower_bound(passes_.ends, passes_.evict_point);
  const Pass pass = pass_at(passes_, index(at - passes_.ends.begin()));
  return rule.budget->over_layers()->share_out(shown, rule.sizing(pass));
}

Replay LiveReplay::finish(RowIndex tokens) {
  for (const auto& lane : lanes_) {
    for (std::size_t row = 0; row < lane->loaded().size(); ++row)
      replay_.ledger.selected[row] += lane->loaded()[row];
  }
  if (tokens < replay_.ledger.plan.tokens) replay_.ledger = cut(std::move(replay_.ledger), tokens);
  fidelity_.measured.resize(static_cast<std::size_t>(tokens));
  FidelityTotal total(fidelity_, replay_.ledger.layers, replay_.ledger.query_heads);
  for (const auto& lane : lanes_) total.add(std::move(lane->fidelity()));
  lanes_.clear();
  replay_.fidelity = total.finish(replay_.ledger);
  return std::move(replay_);
}

std::int64_t LiveReplay::memory_bytes(const Trace& trace, const Geometry& geometry,
                                      const Policy& policy, const Requirements& asked) {
  return live_lane_bytes(trace.meta(), policy, asked.needs, geometry.prompt);
}

}  // namespace kvspan
