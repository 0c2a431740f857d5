// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/eval_report.h"

#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/text.h"
#include "sim/report/csv.h"
#include "sim/report/means.h"
#include "sim/sweep/report_forms.h"
#include "tracegen/eval/eval_record.h"

namespace kvspan::tracegen {
namespace {

using nlohmann::json;

json number(const std::optional<double>& value) { return value ? json(*value) : json(nullptr); }
json interval_json(const sweep::Interval& interval) {
  return json::array({interval.low, interval.high});
}

json policy_json(const PolicyFigures& policy) {
  return {{"label", valid_utf8(policy.label)},
          {"method", valid_utf8(policy.method)},
          {"class", policy.klass},
          {"notes", policy.notes},
          {"score", policy.score},
          {"score_interval", interval_json(policy.score_interval)},
          {"footprint", policy.footprint},
          {"footprint_interval", interval_json(policy.footprint_interval)},
          {"peak_kv", policy.peak_kv},
          {"peak_bytes", policy.peak_bytes},
          {"nll", number(policy.nll)},
          {"delta_nll", number(policy.delta_nll)},
          {"kl", number(policy.divergence)},
          {"retained_mass", number(policy.retained)}};
}

json task_json(const TaskResult& task) {
  json policies = json::array();
  for (const PolicyFigures& policy : task.policies) policies.push_back(policy_json(policy));
  json critical = json::array();
  for (const CriticalFigures& method : task.critical) {
    critical.push_back(
        {{"method", valid_utf8(method.method)},
         {"footprint", sweep::critical_json(method.footprint)},
         {"footprint_interval", json::array({number(method.low), number(method.high)})},
         {"peak_kv", sweep::critical_json(method.peak_kv)},
         {"peak_bytes", sweep::critical_json(method.peak_bytes)}});
  }
  json proxies = json::array();
  for (const ProxyFigures& p : task.proxies) {
    proxies.push_back({{"proxy", p.proxy},
                       {"outcome", p.outcome},
                       {"rank_correlation", p.correlation},
                       {"interval", interval_json(p.interval)}});
  }
  json refused = json::array();
  for (const Refusal& refusal : task.refused)
    refused.push_back(
        {{"label", valid_utf8(refusal.label)}, {"reason", valid_utf8(refusal.reason)}});
  return {{"task", valid_utf8(task.task)},
          {"samples", task.samples.size()},
          {"policies", std::move(policies)},
          {"critical", std::move(critical)},
          {"no_critical", task.why_not.empty() ? json(nullptr) : json(task.why_not)},
          {"proxies", std::move(proxies)},
          {"refused", std::move(refused)}};
}

// Of all samples, with the runs that all samples of their task have.
std::vector<json> documents(const EvalResult& result, const std::vector<std::string>& command) {
  std::vector<json> out;
  for (const TaskResult& task : result.tasks) {
    std::vector<std::string> labels;
    for (const PolicyFigures& policy : task.policies) labels.push_back(policy.label);
    for (const SampleResult& sample : task.samples) {
      out.push_back(with_runs(json::parse(sample.document), labels));
      for (const std::string& word : command) out.back()["command"].push_back(valid_utf8(word));
    }
  }
  return out;
}

std::string percent(double share) { return fmt::format("{:.1f}", 100 * share); }
std::string fixed(const std::optional<double>& value, int digits) {
  return value ? fmt::format("{:.{}f}", *value, digits) : "-";
}

std::string critical_text(const sweep::Critical& critical) {
  using Kind = sweep::Critical::Kind;
  if (critical.kind == Kind::unknown) return "-";
  const char* sign = critical.kind == Kind::below ? "<" : critical.kind == Kind::above ? ">" : "";
  return sign + percent(critical.x);
}

}  // namespace

nlohmann::json to_json(const EvalResult& result, const std::vector<std::string>& command) {
  std::vector<RunReport> reports;
  json tasks = json::array();
  for (const TaskResult& task : result.tasks) {
    tasks.push_back(task_json(task));
    for (const SampleResult& sample : task.samples) {
      reports.push_back(sample.report);
      reports.back().command = command;
    }
  }
  json out = kvspan::to_json(std::span<const RunReport>(reports), Timelines::none);
  out["results"] = documents(result, command);
  out["eval"] = {{"at", result.options.least},
                 {"bootstrap", {{"draws", result.options.draws}, {"seed", result.options.seed}}},
                 {"tasks", std::move(tasks)}};
  return out;
}

std::string to_csv(const EvalResult& result) { return csv_of_documents(documents(result, {})); }

Cells policy_cells(const TaskResult& task, Footnotes& footnotes) {
  Cells out{
      {"policy", "score", "KV footprint %", "peak KV %", "nll", "delta nll", "KL", "retained %"}};
  for (const PolicyFigures& p : task.policies) {
    out.push_back({one_line(valid_utf8(p.label)) + footnotes.marks(p.notes),
                   fmt::format("{:.3f}", p.score), percent(p.footprint), percent(p.peak_kv),
                   fixed(p.nll, 3), fixed(p.delta_nll, 3), fixed(p.divergence, 4),
                   p.retained ? percent(*p.retained) : "-"});
  }
  return out;
}

Cells critical_cells(const TaskResult& task, double least, Footnotes& footnotes) {
  Cells out{{fmt::format("keeps {:.0f} % of the score", 100 * least), "KV footprint %",
             "95 % interval", "peak KV %"}};
  for (const CriticalFigures& c : task.critical) {
    std::string interval = "-";
    if (c.low || c.high) {
      interval =
          fmt::format("{} .. {}", c.low ? percent(*c.low) : "?", c.high ? percent(*c.high) : "?");
    }
    out.push_back({one_line(valid_utf8(c.method)) + footnotes.marks(c.notes),
                   critical_text(c.footprint), std::move(interval), critical_text(c.peak_kv)});
  }
  return out;
}

Cells proxy_cells(const TaskResult& task) {
  Cells out{{"the replay's", "the model's", "rank correlation", "95 % interval"}};
  for (const ProxyFigures& p : task.proxies) {
    out.push_back({p.proxy, p.outcome, fmt::format("{:.2f}", p.correlation),
                   task.samples.size() < 2
                       ? "-"
                       : fmt::format("{:.2f} .. {:.2f}", p.interval.low, p.interval.high)});
  }
  return out;
}

}  // namespace kvspan::tracegen
