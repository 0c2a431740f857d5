// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/engine.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <map>
#include <mutex>

#include "sim/replay/layer_walk.h"
#include "sim/replay/memory_plan.h"

namespace kvspan {
namespace {

// Half of the rows in each phase; what one of them lacks, the other has.
std::vector<RowIndex> rows_of_sample(const PassPlan& plan, RowIndex rows) {
  const RowIndex decode =
      std::min(plan.tokens - plan.prompt, std::max(rows / 2, rows - plan.prompt));
  std::vector<RowIndex> out = spread_rows(0, plan.prompt, rows - decode);
  const std::vector<RowIndex> later = spread_rows(plan.prompt, plan.tokens, decode);
  out.insert(out.end(), later.begin(), later.end());
  return out;
}

}  // namespace

Ledger empty_ledger(const TraceMeta& m, const Policy& policy, const PassPlan& passes,
                    const EngineOptions& options) {
  Ledger ledger;
  ledger.plan = passes;
  ledger.layers = m.layers;
  ledger.model_layers = m.model_layers;
  ledger.heads = policy.per_query_head ? m.query_heads : m.kv_heads;
  ledger.query_heads = m.query_heads;
  ledger.sliding_window = m.sliding_window;
  ledger.representations = policy.representations;
  ledger.waits_for_layers = policy.waits_for_layers;
  ledger.charge = {policy.charge.entry, policy.charge.once, nullptr};
  if (policy.charge.during) {
    for (RowIndex row = 0; row < m.tokens; ++row) ledger.state.push_back(policy.charge.during(row));
  }
  const std::size_t entries = ledger.offset(m.layers, 0);
  ledger.death.assign(entries, static_cast<std::uint32_t>(m.tokens));
  ledger.changes.resize(static_cast<std::size_t>(m.layers));
  if (selects(policy)) {
    ledger.selected.assign(static_cast<std::size_t>(m.tokens), 0);
    const ReadsSample sample = sample_of_reads(m, policy, options);
    ledger.read_rows = rows_of_sample(ledger.plan, sample.rows);
    ledger.reads.assign(static_cast<std::size_t>(sample.rows * sample.row_bytes), 0);
  }
  if (options.keep_scores) {
    ledger.score.assign(entries, std::numeric_limits<float>::quiet_NaN());
    ledger.rank.assign(entries, -1);
  }
  return ledger;
}

namespace {

// What comes of a replay. Layers finish in any order, but are summed in order.
class Results {
 public:
  Results(const WalkPlan& plan, const EngineOptions& options)
      : plan_(plan), replays_(plan.lineup.policies.size()) {
    const TraceMeta& m = plan.trace.meta();
    for (std::size_t p = 0; p < replays_.size(); ++p) {
      replays_[p].ledger =
          empty_ledger(m, plan.lineup.policies[p], plan.lineup.requirements[p].passes, options);
      if (!plan.trace.is_qkv()) replays_[p].undecided = 0;
      totals_.emplace_back(plan.fidelity, m.layers, m.query_heads);
    }
  }

  // For the walks, which fill the ledgers of their own layers.
  std::vector<Replay>& replays() { return replays_; }

  void finish_layer(int layer, LayerWalk& walk) {
    const std::lock_guard lock(mutex_);
    std::vector<LayerFidelity> measured;
    for (std::size_t p = 0; p < replays_.size(); ++p) {
      Lane& lane = walk.lane(p);
      if (replays_[p].undecided) *replays_[p].undecided += lane.undecided();
      for (std::size_t row = 0; row < lane.loaded().size(); ++row)
        replays_[p].ledger.selected[row] += lane.loaded()[row];
      measured.push_back(std::move(walk.fidelity(p)));
    }
    if (!plan_.fidelity.on()) return;
    waiting_.emplace(layer, std::move(measured));
    for (auto it = waiting_.begin(); it != waiting_.end() && it->first == next_to_add_;
         it = waiting_.erase(it), ++next_to_add_) {
      for (std::size_t p = 0; p < totals_.size(); ++p) totals_[p].add(std::move(it->second[p]));
    }
  }

  std::vector<Replay> take() {
    for (std::size_t p = 0; p < replays_.size() && plan_.fidelity.on(); ++p)
      replays_[p].fidelity = totals_[p].finish(replays_[p].ledger);
    return std::move(replays_);
  }

 private:
  const WalkPlan& plan_;
  std::vector<Replay> replays_;
  std::vector<FidelityTotal> totals_;
  std::mutex mutex_;
  std::map<int, std::vector<LayerFidelity>> waiting_;
  int next_to_add_ = 0;
};

// The share of all blocks of all layers that is done, weighed by their cells.
class Progress {
 public:
  explicit Progress(const EngineOptions& options) : options_(options) {}
  // All layers will be walked up to row `until`.
  void expect(const WalkPlan& plan, RowIndex until) {
    for (RowIndex begin = 0; const RowIndex end : plan.block_ends) {
      if (end <= until) whole_ += plan.lineup.geometry.layers() * cells(begin, end);
      begin = end;
    }
  }
  void add(RowIndex begin, RowIndex end) {
    const double more = cells(begin, end);
    const double done = done_.fetch_add(more) + more;
    if (options_.progress) options_.progress(done / whole_);
  }

 private:
  static double cells(RowIndex begin, RowIndex end) {
    return static_cast<double>(end - begin) * static_cast<double>(end);
  }
  const EngineOptions& options_;
  double whole_ = 0;
  std::atomic<double> done_{0};
};

// The policies whose budgets are coupled over layers: what all layers show at the evict point is
// shared out before the replay, whose lanes then only look up what they may keep.
class Survey {
 public:
  Survey(const Trace& trace, const Lineup& lineup, const EngineOptions& options,
         RowIndex block_rows)
      : trace_(trace), options_(options) {
    coupled_.geometry = lineup.geometry;
    options_.fidelity = false;
    for (std::size_t p = 0; p < lineup.policies.size(); ++p) {
      const PassPlan& passes = lineup.requirements[p].passes;
      if (!coupled_rule(lineup.policies[p]) || passes.evict_point == passes.tokens) continue;
      coupled_.policies.push_back(lineup.policies[p]);
      coupled_.requirements.push_back(lineup.requirements[p]);
      places_.push_back(p);
      until_ = std::max(until_, passes.evict_point);
    }
    if (!places_.empty()) plan_.emplace(plan_walk(trace, coupled_, options_, block_rows));
  }
  void announce(Progress& progress) const {
    if (plan_) progress.expect(*plan_, until_);
  }
  // boards [policies of the lineup]
  void run(int in_flight, Progress& progress, std::vector<DecisionBoard>& boards) const {
    if (!plan_) return;
    const int layers = coupled_.geometry.layers();
    std::vector<Replay> replays(places_.size());
    std::vector<DecisionBoard> own(places_.size(), DecisionBoard(layers));
    std::vector<std::vector<LayerShow>> shown(places_.size(),
                                              std::vector<LayerShow>(index(layers)));
    for (std::size_t i = 0; i < places_.size(); ++i) {
      replays[i].ledger = empty_ledger(trace_.meta(), coupled_.policies[i],
                                       coupled_.requirements[i].passes, options_);
    }
    walk_layers(*plan_, options_, in_flight, until_, replays, own,
                {[&](RowIndex begin, RowIndex end) { progress.add(begin, end); },
                 [&](int layer, LayerWalk& walk) {
                   for (std::size_t i = 0; i < places_.size(); ++i)
                     shown[i][index(layer)] = std::move(walk.lane(i).shown());
                 }});
    for (std::size_t i = 0; i < places_.size(); ++i) {
      const Rule& rule = coupled_.policies[i].rules[*coupled_rule(coupled_.policies[i])];
      const PassPlan& passes = coupled_.requirements[i].passes;
      const auto at = std::ranges::lower_bound(passes.ends, passes.evict_point);
      const Pass pass = pass_at(passes, index(at - passes.ends.begin()));
      boards[places_[i]].shares =
          rule.budget->over_layers()->share_out(shown[i], rule.sizing(pass));
    }
  }

 private:
  const Trace& trace_;
  EngineOptions options_;
  Lineup coupled_;
  std::vector<std::size_t> places_;  // in the lineup
  std::optional<WalkPlan> plan_;
  RowIndex until_ = 0;
};

}  // namespace

std::vector<Replay> replay(const Trace& trace, const Lineup& lineup, const EngineOptions& options) {
  const MemoryPlan memory = plan_memory(trace, lineup, options);
  const WalkPlan plan = plan_walk(trace, lineup, options, memory.block_rows);
  const Survey survey(trace, lineup, options, memory.block_rows);
  Results results(plan, options);
  Progress progress(options);
  survey.announce(progress);
  progress.expect(plan, lineup.geometry.tokens);
  std::vector<DecisionBoard> boards(lineup.policies.size(), DecisionBoard(trace.meta().layers));
  survey.run(memory.layers_in_flight, progress, boards);
  walk_layers(plan, options, memory.layers_in_flight, lineup.geometry.tokens, results.replays(),
              boards,
              {[&](RowIndex begin, RowIndex end) { progress.add(begin, end); },
               [&](int layer, LayerWalk& walk) { results.finish_layer(layer, walk); }});
  return results.take();
}

std::vector<Replay> replay(const Trace& trace, const std::vector<Policy>& policies,
                           const EngineOptions& options) {
  return replay(trace, line_up(trace, geometry_of(trace, options), policies), options);
}

}  // namespace kvspan
