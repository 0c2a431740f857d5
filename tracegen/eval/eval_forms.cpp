// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/eval_forms.h"

#include <algorithm>
#include <map>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/text.h"
#include "sim/report/csv.h"
#include "sim/report/json.h"
#include "sim/report/listing.h"
#include "sim/report/run_names.h"
#include "sim/sweep/figures.h"
#include "sim/sweep/report_forms.h"

namespace kvspan::tracegen {
namespace {

using nlohmann::json;

std::optional<sweep::Interval> interval_of(const CriticalFigures& method) {
  if (!method.low || !method.high) return std::nullopt;
  return sweep::Interval{*method.low, *method.high};
}

sweep::Group group_of(const TaskResult& task) {
  const SampleResult& first = task.samples.front();
  const Accounting& accounting = first.report.accounting;
  sweep::Group out;
  out.evict_at = first.evict_at;
  out.chunk = first.report.chunk;
  out.kv_bytes = accounting.kv_bytes;
  out.prefill = accounting.layerwise ? "layerwise" : "whole";
  out.layout = accounting.layout;
  return out;
}

const std::string& model_of(const TaskResult& task) {
  return task.samples.front().report.trace.model;
}

// What it is called among the others: with its model, if there are several.
std::string title_of(const EvalResult& result, const TaskResult& task) {
  const bool several = std::ranges::any_of(
      result.tasks, [&](const TaskResult& other) { return model_of(other) != model_of(task); });
  return one_line(several ? model_of(task) + ": " + task.task : task.task);
}

double full_score(const TaskResult& task) { return task.policies.front().score; }

// The least and the most over a method's budgets.
sweep::Interval range_over(const TaskResult& task, const CriticalFigures& method,
                           double PolicyFigures::*value) {
  sweep::Interval out{task.policies[method.budgets.front()].*value,
                      task.policies[method.budgets.front()].*value};
  for (const std::size_t p : method.budgets) {
    out.low = std::min(out.low, task.policies[p].*value);
    out.high = std::max(out.high, task.policies[p].*value);
  }
  return out;
}

// By critical footprint, as a sweep's curves are.
std::vector<const CriticalFigures*> ordered(const TaskResult& task) {
  std::vector<const CriticalFigures*> out;
  for (const CriticalFigures& method : task.critical) out.push_back(&method);
  std::ranges::stable_sort(
      out, {}, [](const CriticalFigures* method) { return sweep::order_of(method->footprint); });
  return out;
}

std::string left_out_markdown(const TaskResult& task) {
  std::string text;
  for (const LeftOut& left : task.left_out) {
    text += fmt::format("{}{} ({})",
                        text.empty() ? "\nLeft out, since not all samples have it: " : ", ",
                        one_line(left.label), left.samples);
  }
  return text.empty() ? "" : text + ".\n";
}

std::string task_markdown(const std::string& title, const TaskResult& task, Footnotes& footnotes) {
  const SampleResult& first = task.samples.front();
  std::string text = fmt::format(
      "\n## {}: {}\n\n{} sample{}, the first of {} tokens; scored by {}; the full cache scores "
      "{:.3f}\n\n",
      title, sweep::text_of(group_of(task)), task.samples.size(),
      task.samples.size() == 1 ? "" : "s", first.prompt_tokens, scoring_name(first.sample.scoring),
      full_score(task));
  if (!task.why_not.empty()) return text + "No critical footprint: " + task.why_not + ".\n";
  text +=
      "| method | critical footprint | 95 % interval | critical peak | peak memory there | "
      "footprints % | scores | points | on the front |\n|---|---|---|---|---|---|---|---|---|\n";
  const std::vector<std::size_t> front = front_of(task);
  for (const CriticalFigures* method : ordered(task)) {
    const auto on_front = std::ranges::count_if(
        method->budgets, [&](std::size_t p) { return std::ranges::count(front, p) > 0; });
    text += fmt::format(
        "| {}{} | {} | {} | {} | {} | {} | {} | {} | {} |\n", sweep::table_cell(method->method),
        footnotes.marks(method->notes), sweep::share_text(method->footprint),
        sweep::interval_text(interval_of(*method), 100, 1), sweep::share_text(method->peak_kv),
        sweep::bytes_text(method->peak_bytes),
        sweep::interval_text(range_over(task, *method, &PolicyFigures::footprint), 100, 1),
        sweep::interval_text(range_over(task, *method, &PolicyFigures::score), 1, 3),
        method->budgets.size(), on_front == 0 ? "" : std::to_string(on_front));
  }
  return text + left_out_markdown(task);
}

std::string ranking_markdown(const EvalResult& result) {
  const std::vector<sweep::Ranked> ranking = rank_tasks(result);
  if (ranking.empty() || ranking.front().traces < 2) return "";
  std::string text = fmt::format(
      "\n## Ranking over {} tasks\n\nBy critical footprint; 95 % intervals by bootstrap over tasks "
      "({} draws, seed {}).\n\n| method | mean rank | interval | mean critical footprint % | "
      "interval |\n|---|---|---|---|---|\n",
      ranking.front().traces, result.options.draws, result.options.seed);
  for (const sweep::Ranked& ranked : ranking) {
    text +=
        fmt::format("| {} | {:.1f} | {} | {} | {} |\n", sweep::table_cell(ranked.method),
                    ranked.mean_rank, sweep::interval_text(ranked.rank_interval, 1, 1),
                    ranked.mean_critical ? fmt::format("{:.1f}", 100 * *ranked.mean_critical) : "-",
                    sweep::interval_text(ranked.critical_interval, 100, 1));
  }
  return text;
}

json point_json(const PolicyFigures& policy) {
  const auto budget = budget_of(policy.label);
  const auto value = [](const std::optional<double>& v) { return v ? json(*v) : json(nullptr); };
  return {{"label", policy.label},
          {"budget", budget ? json(*budget) : json(nullptr)},
          {"footprint", policy.footprint},
          {"peak_kv", policy.peak_kv},
          {"peak_bytes", policy.peak_bytes},
          {"score", policy.score},
          {"score_interval", sweep::interval_json(policy.score_interval)},
          {"nll", value(policy.nll)},
          {"kl", value(policy.divergence)}};
}

json task_report(const TaskResult& task) {
  json methods = json::array();
  for (const CriticalFigures* method : ordered(task)) {
    json points = json::array();
    for (const std::size_t p : method->budgets) points.push_back(point_json(task.policies[p]));
    methods.push_back({{"method", method->method},
                       {"notes", method->notes},
                       {"critical_footprint", sweep::critical_json(method->footprint)},
                       {"critical_footprint_interval", sweep::interval_json(interval_of(*method))},
                       {"critical_peak_kv", sweep::critical_json(method->peak_kv)},
                       {"critical_peak_bytes", sweep::critical_json(method->peak_bytes)},
                       {"points", std::move(points)}});
  }
  json front = json::array();
  for (const std::size_t p : front_of(task)) front.push_back(task.policies[p].label);
  json left_out = json::array();
  for (const LeftOut& left : task.left_out)
    left_out.push_back({{"label", left.label}, {"samples", left.samples}});
  const sweep::Group group = group_of(task);
  return {{"task", task.task},
          {"model", model_of(task)},
          {"chunk", group.chunk},
          {"evict_at", group.evict_at.empty() ? json() : json(group.evict_at)},
          {"kv_bytes", group.kv_bytes},
          {"layout", group.layout},
          {"samples", task.samples.size()},
          {"scoring", scoring_name(task.samples.front().sample.scoring)},
          {"full_score", full_score(task)},
          {"no_critical", task.why_not.empty() ? json(nullptr) : json(task.why_not)},
          {"methods", std::move(methods)},
          {"front", std::move(front)},
          {"left_out", std::move(left_out)}};
}

const std::vector<sweep::Column>& columns() {
  static const std::vector<sweep::Column> known{
      {"task", "string", "", "as asked for"},
      {"model", "string", "", "that did it"},
      {"chunk_tokens", "integer", "tokens", "prefill chunk; 0: one pass"},
      {"evict_at", "string", "", "span where prompt-end rules act; empty: the prompt's end"},
      {"samples", "integer", "", "that the means are over"},
      {"scoring", "string", "", "how an answer is scored"},
      {"full_score", "number", "1", "mean score of the full cache"},
      {"method", "string", "", "the specification without numbers"},
      {"score_least_share", "number", "1", "F: share of the full cache's score to be kept"},
      {"critical_footprint_kind", "string", "", "exact, below or above the value; empty: none"},
      {"critical_footprint_share", "number", "1", "smallest footprint that keeps F"},
      {"critical_footprint_low_share", "number", "1", "of its 95 % interval over samples"},
      {"critical_footprint_high_share", "number", "1", "of its 95 % interval over samples"},
      {"critical_peak_kind", "string", "", "exact, below or above the value"},
      {"critical_peak_share", "number", "1", "smallest peak KV that keeps F"},
      {"critical_peak_bytes", "number", "bytes", "the same of peak memory"},
      {"points", "integer", "", "budgets that were run"}};
  return known;
}

// What a sweep's picture is drawn of: a task stands where a trace does.
struct Picture {
  sweep::SweepReport report;
  sweep::Plan plan;
};
Picture picture_of(const EvalResult& result) {
  Picture out;
  out.report.options = {result.options.least, result.options.draws, result.options.seed};
  for (const TaskResult& task : result.tasks) {
    if (task.critical.empty() || full_score(task) <= 0) continue;
    const std::size_t place = out.plan.traces.size();
    out.plan.traces.emplace_back().path = title_of(result, task);
    const sweep::Group group = group_of(task);
    const auto at = std::ranges::find(out.report.groups, group);
    const auto g = static_cast<std::size_t>(at - out.report.groups.begin());
    if (at == out.report.groups.end()) out.report.groups.push_back(group);
    for (const CriticalFigures* method : ordered(task)) {
      sweep::Curve& curve = out.report.curves.emplace_back();
      curve.trace = place;
      curve.group = g;
      curve.method = method->method;
      curve.footprint = method->footprint;
      for (const std::size_t p : method->budgets) {
        const PolicyFigures& policy = task.policies[p];
        sweep::CurvePoint& point = curve.points.emplace_back();
        point.footprint = policy.footprint;
        point.retained = policy.score / full_score(task);
      }
      std::ranges::stable_sort(curve.points, {}, &sweep::CurvePoint::footprint);
    }
    out.report.fronts.push_back({place, g, {}});
  }
  return out;
}

}  // namespace

std::vector<sweep::Ranked> rank_tasks(const EvalResult& result) {
  std::map<std::string, std::vector<double>> criticals;
  std::size_t tasks = 0;
  for (const TaskResult& task : result.tasks) {
    if (task.critical.empty()) continue;
    ++tasks;
    for (const CriticalFigures& method : task.critical)
      criticals[method.method].push_back(sweep::order_of(method.footprint));
  }
  std::erase_if(criticals, [&](const auto& one) { return one.second.size() < tasks; });
  return sweep::rank_methods(criticals, 0,
                             {result.options.least, result.options.draws, result.options.seed});
}

std::vector<std::size_t> front_of(const TaskResult& task) {
  std::vector<sweep::Point> points;
  for (const PolicyFigures& policy : task.policies)
    points.push_back({policy.footprint, policy.score});
  return sweep::pareto_front(points);
}

std::string critical_markdown(const EvalResult& result) {
  std::string text = fmt::format(
      "# Critical footprint at {0:g} % of the full cache's score\n\n"
      "The smallest KV footprint, and the smallest peak, that keep {0:g} % of the full cache's "
      "score (means over samples),\ninterpolated between measured budgets; <: the smallest one "
      "measured still does; >: the largest one measured does\nnot. 95 % intervals by bootstrap "
      "over samples ({1} draws, seed {2}).\n",
      100 * result.options.least, result.options.draws, result.options.seed);
  Footnotes footnotes;
  for (const TaskResult& task : result.tasks)
    text += task_markdown(title_of(result, task), task, footnotes);
  text += ranking_markdown(result);
  for (std::size_t i = 0; i < footnotes.notes().size(); ++i)
    text += fmt::format("{}[{}] {}\n", i == 0 ? "\n" : "", i + 1, footnotes.notes()[i]);
  return text;
}

std::string critical_csv(const EvalResult& result) {
  std::string text;
  for (const sweep::Column& column : columns()) text += std::string(column.name) + ",";
  text.back() = '\n';
  const auto kind = [](const sweep::Critical& critical) {
    return sweep::critical_json(critical)["kind"].get<std::string>();
  };
  const auto share = [](const std::optional<double>& value) {
    return value ? fmt::format("{}", *value) : "";
  };
  for (const TaskResult& task : result.tasks) {
    const SampleResult& first = task.samples.front();
    for (const CriticalFigures* method : ordered(task)) {
      text += fmt::format(
          "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}\n", csv_field(task.task),
          csv_field(model_of(task)), first.report.chunk, csv_field(first.evict_at),
          task.samples.size(), scoring_name(first.sample.scoring), full_score(task),
          csv_field(method->method), result.options.least, kind(method->footprint),
          method->footprint.x, share(method->low), share(method->high), kind(method->peak_kv),
          method->peak_kv.x, method->peak_bytes.x, method->budgets.size());
    }
  }
  return text;
}

json critical_csv_schema() { return sweep::schema_of(columns()); }

json critical_json(const EvalResult& result, const std::vector<std::string>& sources) {
  json files = json::array();
  for (const std::string& source : sources) files.push_back(valid_utf8(source));
  json out{{"schema_version", 1},
           {"kvspan", program_json()},
           {"results", std::move(files)},
           {"score_least", result.options.least},
           {"bootstrap", {{"draws", result.options.draws}, {"seed", result.options.seed}}},
           {"tasks", json::array()},
           {"ranking", json::array()}};
  for (const TaskResult& task : result.tasks) out["tasks"].push_back(task_report(task));
  for (const sweep::Ranked& r : rank_tasks(result)) {
    out["ranking"].push_back(
        {{"method", r.method},
         {"tasks", r.traces},
         {"mean_rank", r.mean_rank},
         {"rank_interval", sweep::interval_json(r.rank_interval)},
         {"mean_critical_footprint", r.mean_critical ? json(*r.mean_critical) : json(nullptr)},
         {"critical_interval", sweep::interval_json(r.critical_interval)}});
  }
  return out;
}

std::string critical_svg(const EvalResult& result) {
  const Picture picture = picture_of(result);
  return sweep::to_svg(picture.report, picture.plan,
                       {.kept = "the full cache's score",
                        .axis = "score, % of the full cache's",
                        .note = "scores are means over samples, the model's own answers",
                        .document = "kvspan: footprint against score, by method"});
}

}  // namespace kvspan::tracegen
