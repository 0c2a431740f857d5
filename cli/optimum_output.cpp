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

std::string rows_text(const OptimumSettings& s, const Trace& trace, const OptimumAnswer& answer) {
  const bool decode = s.rows == "decode" && answer.survey.rows < trace.meta().tokens;
  return fmt::format("{} {} rows", answer.survey.rows, decode ? "decode" : "prompt and decode");
}

}  // namespace

void print_optimum(const OptimumSettings& s, const Trace& trace, const OptimumAnswer& answer) {
  const TraceMeta& meta = trace.meta();
  const optimum::Survey& found = answer.survey;
  fmt::print("trace   {}\n", one_line(trace.name()));
  fmt::print("tokens  {} = {} prompt + {} decoded; {} passes\n", meta.tokens, answer.prompt,
             meta.tokens - answer.prompt, answer.passes);
  fmt::print("counted retained attention of {}, mean over {} heads, %\n\n",
             rows_text(s, trace, answer), found.heads);

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
  out["rows"] = {{"which", s.rows}, {"counted", found.rows}};
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
