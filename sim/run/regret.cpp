// SPDX-License-Identifier: Apache-2.0
#include "sim/run/regret.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <utility>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/optimum/frontier.h"
#include "sim/optimum/heads.h"
#include "sim/optimum/survey.h"
#include "sim/optimum/values.h"
#include "sim/replay/fidelity.h"

namespace kvspan {
namespace {

constexpr std::size_t kFrontierPoints = 240;

// Runs that share passes and stored heads share values; policies that act a row early do not.
using PassesAndHeads = std::pair<std::vector<RowIndex>, int>;

class Regrets {
 public:
  Regrets(const Trace& trace, const EngineOptions& options, const std::vector<char>& inside,
          std::span<RunResult> runs, const RegretExtras& extras)
      : trace_(trace), options_(options), runs_(runs), extras_(extras), best_(runs.size(), 0) {
    if (extras.plans != nullptr) extras.plans->resize(runs.size());
    if (runs.empty()) return;
    const RowIndex prompt = runs.front().ledger.plan.prompt;
    const FidelityPlan plan = plan_fidelity(
        trace.meta().tokens, prompt, options.prompt_rows_measured(prompt), options.fidelity_rows);
    counts_ = optimum::judged_rows(plan.measured, prompt);
    rows_ = optimum::count_rows(counts_);
    for (std::size_t r = 0; r < runs.size(); ++r) {
      if (!inside[r]) continue;
      const Ledger& ledger = runs[r].ledger;
      kinds_[{ledger.plan.ends, ledger.heads}].push_back(r);
      heads_ = std::max(heads_, ledger.heads);
      ends_.insert(ends_.end(), ledger.plan.ends.begin(), ledger.plan.ends.end());
    }
    std::sort(ends_.begin(), ends_.end());
    ends_.erase(std::unique(ends_.begin(), ends_.end()), ends_.end());
  }

  // One frontier for the picture bounds all runs: every pass end of any of them, and the finest
  // heads.
  void add() {
    if (kinds_.empty()) return;
    const PassesAndHeads finest{ends_, heads_};
    const bool shared = extras_.frontier != nullptr && !kinds_.contains(finest);
    std::size_t parts = shared ? index(trace_.meta().layers * heads_) : 0;
    for (const auto& [kind, runs] : kinds_) parts += index(trace_.meta().layers * kind.second);
    optimum::SharedProgress progress(options_.progress, parts);
    progress_ = &progress;
    for (const auto& [kind, runs] : kinds_) solve(kind, runs);
    if (shared) solve(finest, {});
    for (auto& [kind, curve] : frontiers_) curve.finish(trace_.meta().layers * kind.second, rows_);
    for (const auto& [kind, runs] : kinds_) {
      for (const std::size_t r : runs) runs_[r].regret = regret_of(r, frontiers_.at(kind));
    }
    if (extras_.frontier == nullptr) return;
    for (const optimum::Frontier::Point& point : frontiers_.at(finest).points(kFrontierPoints))
      extras_.frontier->push_back({point.footprint, point.retained});
  }

 private:
  // The frontier of runs of one kind, and the best at the occupancy of each of them.
  void solve(const PassesAndHeads& kind, const std::vector<std::size_t>& runs) {
    for_each(kind.first, kind.second, [&](const StoredHead& stored, const optimum::Values& values) {
      std::map<optimum::Capacities, std::size_t> places;
      std::vector<optimum::Capacities> different;
      std::vector<std::size_t> place;  // [runs] in `different`
      for (const std::size_t r : runs) {
        optimum::Capacities slots =
            occupancy(values, runs_[r].ledger.deaths(stored.layer, stored.head));
        const auto [at, fresh] = places.emplace(slots, different.size());
        if (fresh) different.push_back(std::move(slots));
        place.push_back(at->second);
      }
      std::vector<optimum::Optimum> best;
      if (!runs.empty()) best = proved_plans(values, different, {options_.cancelled, nullptr});
      optimum::Frontier head;
      head.add(values);
      const std::lock_guard lock(mutex_);
      frontiers_[kind].add(head);
      for (std::size_t i = 0; i < runs.size(); ++i) {
        best_[runs[i]] += values.own() + best[place[i]].gain;
        if (extras_.plans != nullptr) keep(runs[i], stored, deaths_of(values, best[place[i]].plan));
      }
    });
  }

  void keep(std::size_t r, const StoredHead& stored, const std::vector<RowIndex>& deaths) {
    const Ledger& ledger = runs_[r].ledger;
    std::vector<std::uint32_t>& plan = (*extras_.plans)[r];
    plan.resize(ledger.death.size());
    std::copy(deaths.begin(), deaths.end(),
              plan.begin() + static_cast<std::ptrdiff_t>(ledger.offset(stored.layer, stored.head)));
  }

  void for_each(const std::vector<RowIndex>& ends, int heads,
                const std::function<void(const StoredHead&, const optimum::Values&)>& work) {
    optimum::for_each_head(trace_, heads, options_.threads, optimum::value_bytes(ends),
                           [&](const StoredHead& stored) {
                             if (options_.cancelled && options_.cancelled()) throw Interrupted();
                             work(stored, optimum::values_of_head(trace_, stored, ends, counts_));
                             (*progress_)(part_++, 1);
                           });
  }

  [[nodiscard]] RunResult::Regret regret_of(std::size_t r,
                                            const optimum::Frontier& frontier) const {
    const RunResult& run = runs_[r];
    const Fidelity& fidelity = *run.fidelity;
    const double retained = (fidelity.decode ? fidelity.decode : fidelity.all)->mass_mean;
    const double heads = trace_.meta().layers * run.ledger.heads;
    RunResult::Regret out;
    out.optimum = optimum::to_share(best_[r]) / (heads * static_cast<double>(rows_));
    out.regret = std::max(0.0, out.optimum - retained);  // sums of floats may be off by 1e-7
    out.footprint = frontier.footprint_at(retained);
    return out;
  }

  const Trace& trace_;
  const EngineOptions& options_;
  std::span<RunResult> runs_;
  RegretExtras extras_;
  std::vector<char> counts_;  // [tokens] rows by which retained attention is judged
  std::int64_t rows_ = 0;
  std::map<PassesAndHeads, std::vector<std::size_t>> kinds_;
  std::vector<RowIndex> ends_;  // of all kinds
  int heads_ = 0;               // the most of any
  std::map<PassesAndHeads, optimum::Frontier> frontiers_;
  optimum::SharedProgress* progress_ = nullptr;
  std::atomic<std::size_t> part_{0};
  std::mutex mutex_;
  std::vector<optimum::Mass> best_;  // [runs] sums over heads
};

}  // namespace

void refuse_regrets(const Trace& trace, const EngineOptions& options) {
  if (!options.fidelity) {
    throw ConfigError(
        "--regret: found --fidelity none, expected all or rows=K: the optimum is compared with "
        "the retained attention that was measured");
  }
  if (!trace.is_qkv()) {
    throw TraceError(fmt::format(
        "{}: --regret needs every probability, which a score trace does not hold; expected a trace "
        "with layers.*.q and layers.*.k",
        trace.name()));
  }
}

std::int64_t regret_memory(const std::vector<RowIndex>& ends, const EngineOptions& options) {
  // Beside its gains a head needs its entries' places and nodes: a quarter of them at most.
  const std::int64_t head = optimum::value_bytes(ends) / 4 * 5;
  return head * optimum::heads_at_once(options.threads, optimum::value_bytes(ends));
}

void add_regrets(const Trace& trace, const EngineOptions& options, const std::vector<char>& inside,
                 std::span<RunResult> runs, const RegretExtras& extras) {
  Regrets(trace, options, inside, runs, extras).add();
}

Ledger ledger_of_plan(const TraceMeta& trace, const PassPlan& passes, int heads,
                      const Representation& born) {
  Ledger ledger;
  ledger.plan = passes;
  ledger.layers = trace.layers;
  ledger.model_layers = trace.model_layers;
  ledger.heads = heads;
  ledger.query_heads = trace.query_heads;
  ledger.sliding_window = trace.sliding_window;
  ledger.representations = {born};
  ledger.death.assign(ledger.offset(ledger.layers, 0), static_cast<std::uint32_t>(passes.tokens));
  ledger.changes.resize(static_cast<std::size_t>(trace.layers));
  return ledger;
}

RunResult run_of_plan(const std::string& label, Ledger ledger) {
  RunResult run;
  run.spec = run.label = label;
  run.klass = "bound";
  run.bound = true;
  run.ledger = std::move(ledger);
  return run;
}

RunReport report_of_plans(const RunReport& report) {
  RunReport out;
  out.trace_path = report.trace_path;
  out.trace_sha256 = report.trace_sha256;
  out.trace = report.trace;
  out.chunk = report.chunk;
  out.accounting = report.accounting;
  for (std::size_t r = 0; r < report.plans.size(); ++r) {
    if (report.plans[r].empty()) continue;
    const Ledger& of = report.runs[r].ledger;
    out.runs.push_back(
        run_of_plan("optimum of " + report.runs[r].label,
                    ledger_of_plan(report.trace, of.plan, of.heads, of.representations.front())));
    out.runs.back().ledger.death = report.plans[r];
  }
  return out;
}

}  // namespace kvspan
