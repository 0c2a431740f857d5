// SPDX-License-Identifier: Apache-2.0
#include "sim/sweep/search.h"

#include <map>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/replay/requirements.h"
#include "sim/report/run_names.h"
#include "sim/run/run.h"
#include "sim/sweep/report_forms.h"
#include "sim/sweep/unit.h"

namespace kvspan::sweep {
namespace {

// Curves of one trace in one setting.
class SettingSearch {
 public:
  SettingSearch(const SweepFolder& sweep, const SweepReport& report, const SearchOptions& options,
                const Curve& first)
      : group_(report.groups[first.group]),
        about_(sweep.plan.traces[first.trace]),
        trace_(Trace::open(about_.path)) {
    if (trace_.sha256() != about_.sha256) {
      throw TraceError(
          fmt::format("{}: it has changed since the sweep; run the sweep again", about_.path));
    }
    engine_ = replay_options(
        trace_,
        {first.trace, group_.prompt, group_.evict_at, group_.chunk, group_.kv_bytes, group_.seed},
        sweep.plan.config);
    if (!options.sample.empty()) {
      apply_sample(options.sample, engine_);
      engine_.sample.seed = group_.seed;
    }
    engine_.threads = options.threads;
    engine_.cancelled = options.cancelled;
    target_.what = MatchTarget::What::mass;
    target_.value = options.least;
  }

  // All together; or, if one of them is refused, one after the other.
  std::vector<CriticalBudget> find(const std::vector<std::pair<std::size_t, RecipeSpec>>& curves) {
    const Geometry geometry = geometry_of(trace_, engine_);
    std::vector<CriticalBudget> out;
    std::vector<RecipeSpec> specs;
    std::vector<std::size_t> places;  // in `out`
    for (const auto& [curve, spec] : curves) {
      CriticalBudget& one = out.emplace_back();
      one.curve = curve;
      if (is_baseline(spec) || !make_tunable(spec, geometry)) {
        one.why_not = "it has no budget";
        continue;
      }
      places.push_back(out.size() - 1);
      specs.push_back(spec);
    }
    if (specs.empty()) return out;
    try {
      const std::vector<RunResult> runs = matched(specs);
      for (std::size_t i = 0; i < runs.size(); ++i) fill(runs[i], out[places[i]]);
    } catch (const ConfigError&) {
      for (std::size_t i = 0; i < specs.size(); ++i) find_one(specs[i], out[places[i]]);
    }
    return out;
  }

 private:
  [[nodiscard]] std::vector<RunResult> matched(const std::vector<RecipeSpec>& specs) const {
    return run_matched(trace_, specs, target_, engine_,
                       {group_.kv_bytes, group_.prefill == "layerwise", group_.layout});
  }

  void find_one(const RecipeSpec& spec, CriticalBudget& out) const {
    try {
      fill(matched({spec}).front(), out);
    } catch (const ConfigError& error) {
      out.why_not = error.what();
    }
  }

  static void fill(const RunResult& run, CriticalBudget& out) {
    out.spec = run.spec;
    out.budget = budget_of(run.spec).value_or("");
    out.footprint = run.metrics.footprint;
    out.retained = run.match->reached;
    if (run.fidelity && run.fidelity->estimate)
      out.estimate = Interval{run.fidelity->estimate->low, run.fidelity->estimate->high};
    out.below = run.match->next;
    out.reached = run.match->reached >= run.match->wanted;
  }

  const Group& group_;
  const SweepTrace& about_;
  const Trace trace_;
  EngineOptions engine_;
  MatchTarget target_;
};

std::string percent(double share) { return fmt::format("{:.2f}", 100 * share); }

std::string retained_text(const CriticalBudget& one) {
  if (!one.estimate) return percent(one.retained);
  return fmt::format("{} ({} to {})", percent(one.retained), percent(one.estimate->low),
                     percent(one.estimate->high));
}

}  // namespace

std::vector<CriticalBudget> search_budgets(const SweepFolder& sweep, const SweepReport& report,
                                           const SearchOptions& options) {
  std::map<std::uint64_t, std::size_t> spec_of;  // by cell
  for (const Cell& cell : sweep.grid.cells) spec_of[cell.id] = cell.spec;
  std::vector<CriticalBudget> out;
  for (std::size_t begin = 0; begin < report.curves.size();) {
    const Curve& first = report.curves[begin];
    std::vector<std::pair<std::size_t, RecipeSpec>> curves;
    std::size_t end = begin;
    for (; end < report.curves.size() && report.curves[end].trace == first.trace &&
           report.curves[end].group == first.group;
         ++end) {
      const Curve& curve = report.curves[end];
      if (curve.bound) continue;
      const SweepSpec& spec = sweep.plan.specs[spec_of.at(curve.points.front().cell)];
      curves.emplace_back(end, parse_spec(spec.text));
    }
    if (!curves.empty()) {
      std::vector<CriticalBudget> found = SettingSearch(sweep, report, options, first).find(curves);
      std::move(found.begin(), found.end(), std::back_inserter(out));
    }
    begin = end;
    if (options.progress)
      options.progress(static_cast<double>(begin) / static_cast<double>(report.curves.size()));
  }
  return out;
}

std::string to_markdown(const std::vector<CriticalBudget>& found, const SweepReport& report,
                        const Plan& plan, double least) {
  std::string text = fmt::format(
      "## Critical budgets at {:.4g} %\n\nThe smallest budget that keeps so much, found by "
      "bisection on the trace, to one entry or step of\na share (one less keeps what the last "
      "column says); >: the largest budget does not keep it.\n\n",
      100 * least);
  text +=
      "| trace | setting | method | budget | footprint % | interpolated % | retained % | one less "
      "% |\n|---|---|---|---|---|---|---|---|\n";
  std::size_t without = 0;
  for (const CriticalBudget& one : found) {
    const Curve& curve = report.curves[one.curve];
    if (!one.why_not.empty()) {
      ++without;
      continue;
    }
    text += fmt::format("| {} | {} | {} | {}{} | {} | {} | {} | {} |\n",
                        table_cell(plan.traces[curve.trace].path),
                        table_cell(text_of(report.groups[curve.group])), table_cell(curve.method),
                        one.reached ? "" : "> ", table_cell(one.budget.empty() ? "-" : one.budget),
                        percent(one.footprint), share_text(curve.footprint), retained_text(one),
                        one.below && one.reached ? percent(*one.below) : "-");
  }
  if (without > 0) text += fmt::format("\n{} curves have nothing to search.\n", without);
  return text;
}

nlohmann::json to_json(const std::vector<CriticalBudget>& found, const SweepReport& report,
                       const Plan& plan) {
  using nlohmann::json;
  json out = json::array();
  for (const CriticalBudget& one : found) {
    const Curve& curve = report.curves[one.curve];
    json line{{"trace", plan.traces[curve.trace].path},
              {"setting", text_of(report.groups[curve.group])},
              {"method", curve.method}};
    if (one.why_not.empty()) {
      line["policy"] = valid_utf8(one.spec);
      line["budget"] = one.budget.empty() ? json(nullptr) : json(one.budget);
      line["footprint"] = one.footprint;
      line["retained_mass"] = one.retained;
      line["retained_mass_interval"] =
          one.estimate ? json{{"low", one.estimate->low}, {"high", one.estimate->high}} : json();
      line["below"] = one.below ? json(*one.below) : json(nullptr);
      line["reached"] = one.reached;
    } else {
      line["why_not"] = valid_utf8(one.why_not);
    }
    out.push_back(std::move(line));
  }
  return out;
}

}  // namespace kvspan::sweep
