// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/layer_walk.h"

#include <algorithm>
#include <atomic>

#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>
#include <tbb/task_group.h>

#include "sim/base/error.h"
#include "sim/replay/measure_apart.h"

namespace kvspan {

namespace {

FidelityPlan plan_measurement(const Trace& trace, const Geometry& geometry,
                              const EngineOptions& options) {
  FidelityPlan plan =
      plan_fidelity(geometry.tokens, geometry.prompt, options.prompt_rows_measured(geometry.prompt),
                    options.fidelity_rows);
  plan.output_error = wants_values(trace, options);
  plan.spans = trace.meta().spans;
  plan.intervals = !trace.is_qkv();
  const auto sampled = [&] {
    draw_sample(options.sample, trace.meta().layers, trace.meta().kv_heads, plan);
    return plan;
  };
  if (trace.is_qkv()) return sampled();
  // Only captured rows can be measured; all layers must have them.
  std::vector<int> captured(plan.measured.size(), 0);
  for (int l = 0; l < trace.meta().layers; ++l) {
    for (const std::int64_t row : trace.scores(l).rows) captured[static_cast<std::size_t>(row)]++;
  }
  for (std::size_t row = 0; row < captured.size(); ++row) {
    if (captured[row] != trace.meta().layers) plan.measured[row] = 0;
  }
  return sampled();
}

std::vector<char> observed_rows(const Lineup& lineup) {
  std::vector<char> observed(static_cast<std::size_t>(lineup.geometry.tokens), 0);
  for (const Requirements& asked : lineup.requirements) {
    for (const RowRange& rows : asked.observed)
      std::fill(observed.begin() + rows.begin, observed.begin() + rows.end, 1);
  }
  return observed;
}

// apart [policies] that nobody measures on the way
std::vector<char> needed_rows(const Lineup& lineup, const FidelityPlan& fidelity,
                              const std::vector<char>& apart, std::vector<char> observed) {
  RowIndex changes_from = lineup.geometry.tokens;
  for (std::size_t p = 0; p < apart.size(); ++p) {
    if (apart[p] == 0) changes_from = std::min(changes_from, lineup.requirements[p].changes_from);
  }
  for (RowIndex row = changes_from; row < lineup.geometry.tokens; ++row) {
    if (fidelity.measures(row)) observed[static_cast<std::size_t>(row)] = 1;
  }
  return observed;
}

// Rows from here on take a place in their block, whoever needs them: from the evict point on lanes
// decide in every row, and who chooses what the prompt's rows read looks at each of them.
RowIndex dense_from(const Lineup& lineup) {
  const bool each = std::any_of(lineup.policies.begin(), lineup.policies.end(),
                                [](const Policy& policy) { return bool(policy.prefill_reads); });
  return each ? 0 : lineup.geometry.evict_point;
}

// Prefill passes end blocks, so that the last rows of a pass, which rules observe, are in memory.
// Of the prompt a block holds rows that are needed, however far they lie apart: products of many
// rows read the keys once.
std::vector<RowIndex> cut_blocks(const Lineup& lineup, const std::vector<char>& needed,
                                 RowIndex block_rows) {
  std::vector<RowIndex> cuts{lineup.geometry.tokens};
  for (const Requirements& asked : lineup.requirements) {
    for (const RowIndex end : asked.passes.ends) {
      if (end <= lineup.geometry.prompt) cuts.push_back(end);
    }
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  const RowIndex dense = dense_from(lineup);
  std::vector<RowIndex> ends;
  RowIndex begin = 0;
  for (const RowIndex cut : cuts) {
    // The short block comes first: the rows before the cut are the ones that rules look at.
    std::vector<RowIndex> backwards{cut};
    RowIndex held = 0;
    for (RowIndex row = cut - 1; row >= begin; --row) {
      if (row < dense && needed[index(row)] == 0) continue;
      if (held == block_rows) {
        backwards.push_back(row + 1);
        held = 0;
      }
      ++held;
    }
    ends.insert(ends.end(), backwards.rbegin(), backwards.rend());
    begin = cut;
  }
  return ends;
}

}  // namespace

WalkPlan plan_walk(const Trace& trace, const Lineup& lineup, const EngineOptions& options,
                   RowIndex block_rows) {
  WalkPlan plan{.trace = trace, .lineup = lineup, .block_rows = block_rows};
  plan.values = wants_values(trace, options);
  if (options.fidelity) plan.fidelity = plan_measurement(trace, lineup.geometry, options);
  plan.apart.assign(lineup.policies.size(), 0);
  if (options.scores != nullptr && options.fidelity && trace.is_qkv()) {
    plan.scores = options.scores.get();
    plan.unmeasured.prompt = plan.fidelity.prompt;
    for (std::size_t p = 0; p < plan.apart.size(); ++p)
      plan.apart[p] = holds_plainly(lineup.policies[p]) ? 1 : 0;
    if (std::ranges::count(plan.apart, 0) == 0) plan.values = false;
  }
  plan.observed = observed_rows(lineup);
  plan.needed = needed_rows(lineup, plan.fidelity, plan.apart, plan.observed);
  plan.block_ends = cut_blocks(lineup, plan.needed, block_rows);
  return plan;
}

LayerWalk::LayerWalk(const WalkPlan& plan, int layer, std::vector<Replay>& replays,
                     std::vector<DecisionBoard>& boards)
    : plan_(plan),
      layer_(layer),
      replays_(replays),
      scores_(plan.trace, layer),
      terms_(plan.lineup.geometry, plan.fidelity, plan.block_rows, plan.values, layer),
      measured_(plan.fidelity.measures_layer(layer)),
      group_(shared_rankings(plan.lineup.policies)),
      lanes_(plan.lineup.policies.size()),
      apart_(plan.lineup.policies.size()) {
  const Lineup& lineup = plan.lineup;
  // In parallel, since what looks ahead walks the layer's attention here.
  tbb::parallel_for(std::size_t{0}, lanes_.size(), [&](std::size_t p) {
    const Policy& policy = lineup.policies[p];
    lanes_[p] = std::make_unique<Lane>(policy, lineup.requirements[p].passes, plan.trace,
                                       lineup.geometry.shape(layer, policy.per_query_head),
                                       plan.apart[p] != 0 ? plan.unmeasured : plan.fidelity,
                                       replays[p].ledger, boards[p], &group_.shared());
  });
  for (const auto& lane : lanes_) members_.push_back(lane.get());
}

void LayerWalk::step(RowIndex begin, RowIndex end) {
  const RowBlock& block =
      terms_.compute(scores_, begin, end, measured_ ? plan_.needed : plan_.observed);
  // Another layer has failed: loops inside end early, and what they were to fill is not there.
  if (tbb::is_current_task_group_canceling()) return;
  const Geometry& geometry = plan_.lineup.geometry;
  group_.process(block, geometry.prompt, geometry.shape(0, false), members_);
}

void LayerWalk::measure(const std::function<void()>& check) {
  std::vector<std::size_t> places;
  std::vector<const Ledger*> ledgers;
  for (std::size_t p = 0; p < lanes_.size(); ++p) {
    if (plan_.apart[p] == 0) continue;
    places.push_back(p);
    ledgers.push_back(&replays_[p].ledger);
  }
  if (places.empty()) return;
  std::vector<LayerFidelity> found =
      measure_apart(*plan_.scores, plan_.trace, plan_.fidelity, layer_, ledgers, check);
  for (std::size_t i = 0; i < places.size(); ++i) apart_[places[i]] = std::move(found[i]);
}

void walk_layers(const WalkPlan& plan, const EngineOptions& options, int in_flight, RowIndex until,
                 std::vector<Replay>& replays, std::vector<DecisionBoard>& boards,
                 const WalkHooks& hooks) {
  const int layers = plan.lineup.geometry.layers();
  std::atomic<int> next_layer{0};
  std::atomic<bool> failed{false};
  const auto walk_layer = [&](int layer) {
    LayerWalk walk(plan, layer, replays, boards);
    for (RowIndex begin = 0; const RowIndex end : plan.block_ends) {
      if (end > until) break;
      if (options.cancelled && options.cancelled()) throw Interrupted();
      if (failed) return;
      walk.step(begin, end);
      hooks.stepped(begin, end);
      begin = end;
    }
    walk.measure([&] {
      if (options.cancelled && options.cancelled()) throw Interrupted();
    });
    hooks.finished(layer, walk);
  };
  const auto walk_some = [&](int /*in flight*/) {
    try {
      for (int layer = next_layer++; layer < layers && !failed; layer = next_layer++)
        walk_layer(layer);
    } catch (...) {
      failed = true;
      throw;
    }
  };
  const tbb::global_control allow(tbb::global_control::max_allowed_parallelism,
                                  static_cast<std::size_t>(threads_of(options)));
  tbb::task_arena arena(threads_of(options));
  arena.execute([&] { tbb::parallel_for(0, in_flight, 1, walk_some, tbb::simple_partitioner()); });
}

}  // namespace kvspan
