// SPDX-License-Identifier: Apache-2.0
#include "cli/optimum_output.h"

#include <cstdio>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "sim/base/text.h"
#include "sim/report/json.h"

namespace kvspan::cli {
namespace {

constexpr std::size_t kFrontierPoints = 500;

using optimum::BudgetBounds;

std::string percent(double share) { return fmt::format("{:.2f}", 100 * share); }

std::int64_t rows_counted(const OptimumSettings& s, const OptimumAnswer& answer) {
  return s.value == "error" ? answer.errors.rows : answer.survey.rows;
}

std::string rows_text(const OptimumSettings& s, const Trace& trace, const OptimumAnswer& answer) {
  const std::int64_t rows = rows_counted(s, answer);
  const bool decode = s.rows == "decode" && rows < trace.meta().tokens;
  return fmt::format("{} {} rows", rows, decode ? "decode" : "prompt and decode");
}

void print_head(const Trace& trace, const OptimumAnswer& answer, const std::string& counted) {
  const TraceMeta& meta = trace.meta();
  fmt::print("trace   {}\n", one_line(trace.name()));
  fmt::print("tokens  {} = {} prompt + {} decoded; {} passes\n", meta.tokens, answer.prompt,
             meta.tokens - answer.prompt, answer.passes);
  fmt::print("counted {}\n\n", counted);
}

nlohmann::json errors_json(const optimum::PlanErrors& errors) {
  return {{"retained_mass", errors.retained},
          {"weighted_error", errors.weighted},
          {"output_error", errors.error},
          {"output_error_bound", errors.bound}};
}

void add_errors(const OptimumAnswer& answer, nlohmann::json& out) {
  for (std::size_t b = 0; b < answer.errors.bounds.size(); ++b) {
    const optimum::ErrorBounds& bounds = answer.errors.bounds[b];
    out["budgets"].push_back({{"budget", answer.budget_texts[b]},
                              {"entries", bounds.budget},
                              {"footprint", bounds.footprint},
                              {"least_bound", bounds.least},
                              {"plan", errors_json(bounds.plan)},
                              {"plan_of_most_mass", errors_json(bounds.by_mass)}});
  }
}

}  // namespace

void print_optimum(const OptimumSettings& s, const Trace& trace, const OptimumAnswer& answer) {
  const optimum::Survey& found = answer.survey;
  print_head(trace, answer,
             fmt::format("retained attention of {}, mean over {} heads, %",
                         rows_text(s, trace, answer), found.heads));

  std::vector<std::vector<std::string>> rows(1);
  rows[0] = {"budget", "entries", "footprint %", "belady_mass", "optimum"};
  if (s.shared) rows[0].insert(rows[0].end(), {"optimum_layer", "optimum_global"});
  rows[0].insert(rows[0].end(), {"optimum_select", "optimum_footprint"});
  for (std::size_t b = 0; b < found.bounds.size(); ++b) {
    const BudgetBounds& bounds = found.bounds[b];
    std::vector<std::string> row{answer.budget_texts[b], fmt::format("{}", bounds.budget),
                                 percent(bounds.footprint), percent(bounds.belady_mass),
                                 percent(bounds.optimum)};
    for (const std::optional<double>& share : {bounds.optimum_layer, bounds.optimum_global}) {
      if (share) row.push_back(percent(*share));
    }
    row.push_back(percent(bounds.optimum_select));
    row.push_back(percent(bounds.optimum_footprint));
    rows.push_back(std::move(row));
  }
  fmt::print("{}\n", align(rows));
  fmt::print(
      "optimum: the most that any eviction policy could retain with so many entries in each head\n"
      "after every pass, knowing the future; belady_mass: by evicting the least attention to "
      "come;\n"
      "{}optimum_select: if entries could come back; optimum_footprint: at the same footprint, "
      "with\n"
      "no limit in any pass. Each row reads its own pass whatever the budget: {} %.\n"
      "Certified: {} plans, each proved best by prices of slots that bound every other plan{}.\n",
      s.shared
          ? "optimum_layer, optimum_global: if the heads of a layer, of the model, share them;\n"
          : "",
      percent(found.own), found.certified,
      s.reference ? ";\nthose of single heads equal Boost's min-cost flow" : "");
}

void print_errors(const OptimumSettings& s, const Trace& trace, const OptimumAnswer& answer) {
  const optimum::ErrorSurvey& found = answer.errors;
  print_head(trace, answer,
             fmt::format("relative output error of {}, mean over {} heads, %",
                         rows_text(s, trace, answer), found.heads));
  std::vector<std::vector<std::string>> rows = {
      {"", "", "", "least", "retained", "output", "error", "retained", "output"},
      {"budget", "entries", "footprint %", "bound", "x error", "error", "at most", "by mass",
       "by mass"}};
  for (std::size_t b = 0; b < found.bounds.size(); ++b) {
    const optimum::ErrorBounds& bounds = found.bounds[b];
    rows.push_back({answer.budget_texts[b], fmt::format("{}", bounds.budget),
                    percent(bounds.footprint), percent(bounds.least), percent(bounds.plan.weighted),
                    percent(bounds.plan.error), percent(bounds.plan.bound),
                    percent(bounds.by_mass.retained), percent(bounds.by_mass.error)});
  }
  fmt::print("{}\n", align(rows));
  fmt::print(
      "least bound: the least sum, over the entries that are gone, of attention x norm(v - o) /\n"
      "norm(o) that any eviction with so many entries in each head can have. It bounds retained\n"
      "attention x output error of its own plan, and, divided by what a row retains, the error "
      "(error\n"
      "at most): the best error that eviction can have is no larger than that plan's. How small "
      "it\n"
      "can be is not said, so that no policy has a regret in errors. By mass: the plan that "
      "retains\n"
      "most attention.\n"
      "Certified: {} plans, each proved to have the least bound, or the most attention.\n",
      found.certified);
}

nlohmann::json optimum_json(const OptimumSettings& s, const std::vector<std::string>& command,
                            const Trace& trace, const OptimumAnswer& answer) {
  using nlohmann::json;
  const TraceMeta& meta = trace.meta();
  const optimum::Survey& found = answer.survey;
  json out;
  out["schema_version"] = 1;
  out["kvspan"] = program_json();
  for (const std::string& word : command) out["command"].push_back(valid_utf8(word));
  out["trace"] = {{"path", valid_utf8(trace.name())}, {"sha256", trace.sha256()},
                  {"model", valid_utf8(meta.model)},  {"layer_ids", meta.layer_ids},
                  {"kv_heads", meta.kv_heads},        {"tokens", meta.tokens},
                  {"prompt_tokens", answer.prompt}};
  out["chunk"] = s.chunk;
  out["passes"] = answer.passes;
  out["value"] = s.value;
  out["rows"] = {{"which", s.rows}, {"counted", rows_counted(s, answer)}};
  if (s.value == "error") {
    out["certified"] = answer.errors.certified;
    add_errors(answer, out);
    return out;
  }
  out["own"] = found.own;
  out["certified"] = found.certified;
  for (std::size_t b = 0; b < found.bounds.size(); ++b) {
    const BudgetBounds& bounds = found.bounds[b];
    const auto share = [](const std::optional<double>& value) {
      return value ? json(*value) : json(nullptr);
    };
    out["budgets"].push_back({{"budget", answer.budget_texts[b]},
                              {"entries", bounds.budget},
                              {"footprint", bounds.footprint},
                              {"belady_mass", bounds.belady_mass},
                              {"optimum", bounds.optimum},
                              {"optimum_layer", share(bounds.optimum_layer)},
                              {"optimum_global", share(bounds.optimum_global)},
                              {"optimum_select", bounds.optimum_select},
                              {"optimum_footprint", bounds.optimum_footprint},
                              {"optimum_per_head", bounds.heads}});
  }
  out["optimum_by_entries"] = found.by_budget;
  out["frontier"] = {{"footprint", json::array()}, {"retained_mass", json::array()}};
  for (const optimum::Frontier::Point& point : found.frontier.points(kFrontierPoints)) {
    out["frontier"]["footprint"].push_back(point.footprint);
    out["frontier"]["retained_mass"].push_back(point.retained);
  }
  return out;
}

}  // namespace kvspan::cli
