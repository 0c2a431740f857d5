// SPDX-License-Identifier: Apache-2.0
#include "sim/optimum/survey.h"

#include <atomic>
#include <mutex>
#include <stdexcept>
#include <string>

#include <fmt/format.h>

#include "sim/optimum/bounds.h"
#include "sim/optimum/certificate.h"
#include "sim/optimum/heads.h"
#include "sim/optimum/reference_flow.h"

namespace kvspan::optimum {
namespace {

void prove(const Values& values, const Capacities& capacities, const Optimum& best) {
  const std::string why = why_not_best(values, capacities, best.plan, best.prices);
  if (!why.empty()) throw std::logic_error("the optimum is not proved: " + why);
}

void compare_with_reference(const Values& values, const Capacities& capacities, Mass gain) {
  const Mass reference = gain_of(values, reference_plan(values, capacities));
  if (reference == gain) return;
  throw std::logic_error(
      fmt::format("the solvers differ: {}, and the reference gains {}", gain, reference));
}

// Sums over heads, in units of mass.
struct BudgetSums {
  Mass belady = 0, optimum = 0, select = 0, layer = 0, global = 0;
  std::int64_t rows = 0;
  std::vector<std::vector<Mass>> heads;
};

class Work {
 public:
  Work(const Trace& trace, const SurveyRequest& request)
      : trace_(trace),
        request_(request),
        kv_heads_(trace.meta().kv_heads),
        layers_(trace.meta().layers),
        by_budget_(index(request.budgets.back()) + 1, 0),
        sums_(request.budgets.size()),
        progress_(request.watch.progress, parts()) {
    for (BudgetSums& sums : sums_)
      sums.heads.assign(index(layers_), std::vector<Mass>(index(kv_heads_), 0));
  }

  Survey run() {
    const std::int64_t bytes = value_bytes(request_.ends);
    for_each_head(trace_, kv_heads_, request_.threads, bytes,
                  [&](const StoredHead& stored) { by_itself(stored); });
    if (request_.shared) {
      std::vector<Values> layers(index(layers_));
      for_each_head(trace_, 1, request_.threads, bytes * kv_heads_, [&](const StoredHead& stored) {
        layers[index(stored.layer)] = in_layer(stored.layer);
      });
      together(layers);
    }
    return result();
  }

 private:
  [[nodiscard]] std::size_t parts() const {
    const auto heads = index(layers_ * kv_heads_);
    return request_.shared ? 3 * heads : heads;  // shared slots take about as long, each time
  }
  [[nodiscard]] SolverWatch watch(std::size_t part, std::size_t parts) {
    SolverWatch watch;
    watch.cancelled = request_.watch.cancelled;
    watch.progress = [this, part, parts](double done) {
      for (std::size_t i = part; i < part + parts; ++i) progress_(i, done);
    };
    return watch;
  }

  // The best plans of `share` times every budget, proved.
  //   gains  receives those of every number of slots up to the largest; may be null
  std::vector<Optimum> solve(const Values& values, std::int64_t share, const SolverWatch& watch,
                             std::vector<Mass>* gains = nullptr) {
    std::vector<std::int64_t> slots;
    for (const std::int64_t budget : request_.budgets) slots.push_back(budget * share);
    std::vector<Optimum> best;
    std::vector<Mass> on_the_way = best_plans_by_budget(
        values, slots, [&](std::int64_t, const Optimum& found) { best.push_back(found); }, watch);
    if (gains != nullptr) *gains = std::move(on_the_way);
    for (std::size_t b = 0; b < best.size(); ++b) {
      const Capacities capacities = constant_capacities(values, slots[b]);
      prove(values, capacities, best[b]);
      if (request_.reference && share == 1)
        compare_with_reference(values, capacities, best[b].gain);
      ++certified_;
    }
    return best;
  }

  void by_itself(const StoredHead& stored) {
    const auto part = index(stored.layer * kv_heads_ + stored.head);
    const Values values = values_of_head(trace_, stored, request_.ends, request_.counts);
    const Mass own = values.own();
    std::vector<Mass> gains;
    const std::vector<Optimum> best = solve(values, 1, watch(part, 1), &gains);
    std::vector<Mass> belady, select;
    for (const std::int64_t budget : request_.budgets) {
      const Capacities capacities = constant_capacities(values, budget);
      belady.push_back(gain_of(values, belady_mass(values, capacities)));
      select.push_back(optimum_select(values, capacities));
    }
    Frontier frontier;
    frontier.add(values);
    progress_(part, 1);
    const std::lock_guard lock(mutex_);
    own_ += own;
    out_.frontier.add(frontier);
    for (std::size_t b = 0; b < gains.size(); ++b) by_budget_[b] += own + gains[b];
    for (std::size_t b = 0; b < best.size(); ++b) {
      BudgetSums& sums = sums_[b];
      sums.optimum += own + best[b].gain;
      sums.heads[index(stored.layer)][index(stored.head)] = own + best[b].gain;
      sums.belady += own + belady[b];
      sums.select += own + select[b];
      sums.rows += rows_held(values, best[b].plan);
      if (request_.use_deaths) request_.use_deaths(b, stored, deaths_of(values, best[b].plan));
    }
  }

  Values in_layer(int layer) {
    Values pooled = values_of_head(trace_, {layer, 0, kv_heads_}, request_.ends, request_.counts);
    for (int head = 1; head < kv_heads_; ++head)
      pooled.pool(values_of_head(trace_, {layer, head, kv_heads_}, request_.ends, request_.counts));
    const auto heads = index(kv_heads_);
    const std::vector<Optimum> best =
        solve(pooled, kv_heads_, watch((index(layers_) + index(layer)) * heads, heads));
    const std::lock_guard lock(mutex_);
    for (std::size_t b = 0; b < best.size(); ++b) sums_[b].layer += pooled.own() + best[b].gain;
    return pooled;
  }

  void together(std::vector<Values>& layers) {
    Values pooled = std::move(layers.front());
    for (std::size_t l = 1; l < layers.size(); ++l) {
      pooled.pool(layers[l]);
      layers[l] = {};
    }
    const auto heads = index(layers_ * kv_heads_);
    const std::vector<Optimum> best = solve(pooled, layers_ * kv_heads_, watch(2 * heads, heads));
    for (std::size_t b = 0; b < best.size(); ++b) sums_[b].global += pooled.own() + best[b].gain;
  }

  Survey result() {
    out_.rows = count_rows(request_.counts);
    out_.heads = layers_ * kv_heads_;
    out_.certified = certified_;
    out_.frontier.finish(out_.heads, out_.rows);
    const double all = static_cast<double>(out_.rows) * out_.heads;
    const auto share = [&](Mass mass) { return to_share(mass) / all; };
    out_.own = share(own_);
    for (const Mass mass : by_budget_) out_.by_budget.push_back(share(mass));
    const auto tokens = static_cast<double>(trace_.meta().tokens);
    for (std::size_t at = 0; at < sums_.size(); ++at) {
      const BudgetSums& sums = sums_[at];
      BudgetBounds bounds;
      bounds.budget = request_.budgets[at];
      bounds.footprint = static_cast<double>(sums.rows) / (out_.heads * tokens * (tokens + 1) / 2);
      bounds.belady_mass = share(sums.belady);
      bounds.optimum = share(sums.optimum);
      bounds.optimum_select = share(sums.select);
      bounds.optimum_footprint = out_.frontier.retained_at(bounds.footprint);
      if (request_.shared) {
        bounds.optimum_layer = share(sums.layer);
        bounds.optimum_global = share(sums.global);
      }
      for (const std::vector<Mass>& layer : sums.heads) {
        bounds.heads.emplace_back();
        for (const Mass mass : layer) bounds.heads.back().push_back(out_.heads * share(mass));
      }
      out_.bounds.push_back(std::move(bounds));
    }
    return std::move(out_);
  }

  const Trace& trace_;
  const SurveyRequest& request_;
  int kv_heads_, layers_;
  std::atomic<std::int64_t> certified_{0};
  std::mutex mutex_;  // of what follows, while heads are worked on
  Mass own_ = 0;
  std::vector<Mass> by_budget_;
  std::vector<BudgetSums> sums_;
  Survey out_;
  SharedProgress progress_;
};

}  // namespace

std::vector<Optimum> proved_plans(const Values& values, std::span<const Capacities> capacities,
                                  const SolverWatch& watch) {
  std::vector<Optimum> best = best_plans(values, capacities, watch);
  for (std::size_t i = 0; i < best.size(); ++i) prove(values, capacities[i], best[i]);
  return best;
}

Survey survey(const Trace& trace, const SurveyRequest& request) {
  return Work(trace, request).run();
}

}  // namespace kvspan::optimum
