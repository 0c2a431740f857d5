// SPDX-License-Identifier: Apache-2.0
// A sweep's report as Markdown, CSV and JSON.
#include <algorithm>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/build_info.h"
#include "sim/base/text.h"
#include "sim/report/csv.h"
#include "sim/sweep/figures.h"
#include "sim/sweep/report_forms.h"

namespace kvspan::sweep {
namespace {

using nlohmann::json;
using Kind = Critical::Kind;

const char* sign_of(Kind kind) {
  return kind == Kind::below ? "< " : kind == Kind::above ? "> " : "";
}

std::string heading(const SweepReport& report, const Plan& plan, std::size_t trace,
                    std::size_t group) {
  const SweepTrace& t = plan.traces[trace];
  return fmt::format("## {}: {}\n\n{} tokens{}\n\n", one_line(t.path),
                     text_of(report.groups[group]), t.tokens,
                     t.layers < t.model_layers
                         ? fmt::format("; bytes of {} of {} layers", t.layers, t.model_layers)
                         : "");
}

bool has_regrets(const SweepReport& report) {
  return std::any_of(report.curves.begin(), report.curves.end(),
                     [](const Curve& curve) { return curve.regret; });
}

// "| 0.8 to 4.9 | 31.2 % ", or nothing.
std::string regret_cells(const Curve& curve, bool regrets) {
  if (!regrets) return "";
  if (!curve.regret) return "| - | - ";
  return fmt::format("| {} | {} ", interval_text(curve.regret, 100, 1), share_text(*curve.optimum));
}

std::string curve_line(const Curve& curve, const std::set<std::uint64_t>& front, bool regrets) {
  const auto on_front = std::count_if(curve.points.begin(), curve.points.end(),
                                      [&](const CurvePoint& p) { return front.contains(p.cell); });
  const CurvePoint& least = curve.points.front();
  const CurvePoint& most = curve.points.back();
  std::string critical = share_text(curve.footprint);
  if (curve.footprint_low) critical += " (from " + share_text(*curve.footprint_low) + ")";
  if (const auto& interval = curve.footprint_interval)
    critical +=
        fmt::format(" ({} to {})", share_text(interval->first), share_text(interval->second));
  return fmt::format("| {} | {} | {} | {} | {:.1f} to {:.1f} | {:.1f} to {:.1f} {}| {} | {} |\n",
                     table_cell(labelled(curve.method, curve.bound, curve.stand_in)), critical,
                     share_text(curve.peak_kv), bytes_text(curve.peak_bytes), 100 * least.footprint,
                     100 * most.footprint, 100 * least.retained, 100 * most.retained,
                     regret_cells(curve, regrets), curve.points.size(),
                     on_front == 0 ? "" : std::to_string(on_front));
}

std::string ranking_text(const SweepReport& report) {
  const bool several = std::any_of(report.ranking.begin(), report.ranking.end(),
                                   [](const Ranked& r) { return r.traces > 1; });
  if (!several) return "";
  std::string text = fmt::format(
      "## Ranking over traces\n\nBy critical footprint; 95 % intervals by bootstrap over traces "
      "({} draws, seed {}).\n",
      report.options.draws, report.options.seed);
  std::optional<std::size_t> group;
  for (const Ranked& ranked : report.ranking) {
    if (ranked.traces < 2) continue;
    if (group != ranked.group) {
      group = ranked.group;
      text += fmt::format(
          "\n{}, {} traces\n\n| method | mean rank | interval | mean critical footprint % | "
          "interval |\n|---|---|---|---|---|\n",
          text_of(report.groups[ranked.group]), ranked.traces);
    }
    text += fmt::format(
        "| {} | {:.1f} | {} | {} | {} |\n",
        table_cell(labelled(ranked.method, false, is_stand_in(report.curves, ranked.method))),
        ranked.mean_rank, interval_text(ranked.rank_interval, 1, 1),
        ranked.mean_critical ? fmt::format("{:.1f}", 100 * *ranked.mean_critical) : "-",
        interval_text(ranked.critical_interval, 100, 1));
  }
  return text;
}

json share_json(const std::optional<double>& share) { return share ? json(*share) : json(nullptr); }

json group_json(const Group& group) {
  return {{"prompt", group.prompt},     {"evict_at", group.evict_at}, {"chunk", group.chunk},
          {"kv_bytes", group.kv_bytes}, {"seed", group.seed},         {"prefill", group.prefill},
          {"layout", group.layout}};
}

json curve_json(const Curve& curve, const Plan& plan) {
  json points = json::array();
  for (const CurvePoint& p : curve.points) {
    points.push_back({{"cell", id_text(p.cell)},
                      {"budget", p.budget.empty() ? json(nullptr) : json(p.budget)},
                      {"footprint", p.footprint},
                      {"peak_kv", p.peak_kv},
                      {"peak_bytes", p.peak_bytes},
                      {"retained_mass", p.retained},
                      {"retained_mass_upper", share_json(p.retained_upper)},
                      {"retained_mass_interval", interval_json(p.estimate)},
                      {"regret", share_json(p.regret)},
                      {"optimum_footprint", share_json(p.optimum_footprint)}});
  }
  return {
      {"trace", plan.traces[curve.trace].path},
      {"trace_sha256", plan.traces[curve.trace].sha256},
      {"group", curve.group},
      {"method", curve.method},
      {"bound", curve.bound},
      {"stand_in", curve.stand_in},
      {"critical_footprint", critical_json(curve.footprint)},
      {"critical_footprint_low",
       curve.footprint_low ? critical_json(*curve.footprint_low) : json(nullptr)},
      {"critical_footprint_interval",
       curve.footprint_interval ? json{{"low", critical_json(curve.footprint_interval->first)},
                                       {"high", critical_json(curve.footprint_interval->second)}}
                                : json(nullptr)},
      {"critical_optimum_footprint", curve.optimum ? critical_json(*curve.optimum) : json(nullptr)},
      {"regret", interval_json(curve.regret)},
      {"critical_peak_kv", critical_json(curve.peak_kv)},
      {"critical_peak_bytes", critical_json(curve.peak_bytes)},
      {"points", std::move(points)}};
}

const std::vector<Column>& columns() {
  static const std::vector<Column> known{
      {"trace", "string", "", "path as found"},
      {"trace_sha256", "string", "", "of the trace's files"},
      {"prompt_option_tokens", "integer", "tokens", "as asked for; 0: as the trace says"},
      {"evict_at", "string", "", "span or row where prompt-end rules act"},
      {"chunk_tokens", "integer", "tokens", "prefill chunk; 0: one pass"},
      {"kv_element_bytes", "integer", "bytes", "of one stored element"},
      {"prefill", "string", "", "whole or layerwise"},
      {"layout", "string", "", "storage layout that bytes are counted in"},
      {"seed", "integer", "", "of policies that draw random numbers"},
      {"method", "string", "", "the specification without its budget or other knob"},
      {"bound", "boolean", "", "reads the future"},
      {"stand_in", "boolean", "", "learned parts are not the authors': see the cells' notes"},
      {"retained_attention_least_share", "number", "1", "F: what has to be left"},
      {"critical_footprint_kind", "string", "", "exact, below or above the value"},
      {"critical_footprint_share", "number", "1", "smallest footprint that keeps F"},
      {"critical_peak_kind", "string", "", "exact, below or above the value"},
      {"critical_peak_share", "number", "1", "smallest peak KV that keeps F"},
      {"critical_peak_bytes", "number", "bytes", "the same of peak memory, of stored layers"},
      {"critical_optimum_kind", "string", "", "exact, below or above the value; empty: no regrets"},
      {"critical_optimum_share", "number", "1",
       "smallest footprint at which the best eviction at the method's pass ends keeps F"},
      {"regret_least_share", "number", "1", "of its points; see cells.schema.json"},
      {"regret_most_share", "number", "1", "of its points"},
      {"points", "integer", "", "measured"}};
  return known;
}

}  // namespace

std::string table_cell(const std::string& text) {
  std::string out;
  for (const char c : one_line(text)) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

std::string share_text(const Critical& critical) {
  if (critical.kind == Kind::unknown) return "-";
  return fmt::format("{}{:.1f} %", sign_of(critical.kind), 100 * critical.x);
}

std::string bytes_text(const Critical& critical) {
  if (critical.kind == Kind::unknown) return "-";
  return sign_of(critical.kind) + human_bytes(static_cast<std::int64_t>(critical.x));
}

std::string interval_text(const std::optional<Interval>& interval, double scale, int digits) {
  if (!interval) return "-";
  return fmt::format("{:.{}f} to {:.{}f}", scale * interval->low, digits, scale * interval->high,
                     digits);
}

json critical_json(const Critical& critical) {
  static const char* const names[] = {"unknown", "exact", "below", "above"};
  return {{"kind", names[static_cast<int>(critical.kind)]},
          {"value", critical.kind == Kind::unknown ? json(nullptr) : json(critical.x)}};
}

json interval_json(const std::optional<Interval>& interval) {
  return interval ? json{{"low", interval->low}, {"high", interval->high}} : json(nullptr);
}

std::string to_markdown(const SweepReport& report, const Plan& plan) {
  const Counts& counts = report.counts;
  std::string text = fmt::format(
      "# Critical footprint at {:g} % of attention\n\n"
      "The smallest KV footprint, and the smallest peak, that keep {:g} % of the full cache's "
      "attention in decode rows\n(a proxy, not accuracy), interpolated between measured budgets; "
      "<: the smallest one measured still does; >: the\nlargest one measured does not. {} of {} "
      "cells are done, {} left out, {} failed, {} left.\n",
      100 * report.options.least, 100 * report.options.least, counts.done, counts.all(),
      counts.left_out, counts.failed, counts.left);
  if (!plan.config.sample.empty()) {
    text += fmt::format(
        "\nAttention was measured on a random sample ({}): in brackets what the critical footprint "
        "is at the ends of\nthe 95 % intervals of its estimates.\n",
        plan.config.sample);
  }
  const bool regrets = has_regrets(report);
  if (regrets) {
    text +=
        "\nRegret: retained attention, in points, that the best eviction, knowing the future, has "
        "more at the same occupancy\n(the least and the most over the budgets). Optimum's: the "
        "smallest footprint at which it keeps as much.\n";
  }
  for (const Front& front : report.fronts) {
    const std::set<std::uint64_t> cells(front.cells.begin(), front.cells.end());
    text += "\n" + heading(report, plan, front.trace, front.group);
    text += fmt::format(
        "| method | critical footprint | critical peak | peak memory there | footprints % | "
        "retained % {}| points | on the front |\n|---|---|---|---|---|---|{}---|---|\n",
        regrets ? "| regret % | optimum's " : "", regrets ? "---|---|" : "");
    for (const Curve& curve : report.curves) {
      if (curve.trace == front.trace && curve.group == front.group)
        text += curve_line(curve, cells, regrets);
    }
  }
  const std::string ranking = ranking_text(report);
  return text + (ranking.empty() ? "" : "\n" + ranking);
}

std::string to_csv(const SweepReport& report, const Plan& plan) {
  std::string text;
  for (const Column& column : columns()) text += std::string(column.name) + ",";
  text.back() = '\n';
  const auto kind = [](const Critical& critical) {
    return critical_json(critical)["kind"].get<std::string>();
  };
  const auto regrets_of = [&](const Curve& curve) -> std::string {
    if (!curve.regret) return ",,,";
    return fmt::format("{},{},{},{}", kind(*curve.optimum), curve.optimum->x, curve.regret->low,
                       curve.regret->high);
  };
  for (const Curve& curve : report.curves) {
    const Group& g = report.groups[curve.group];
    text += fmt::format("{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}\n",
                        csv_field(plan.traces[curve.trace].path), plan.traces[curve.trace].sha256,
                        g.prompt, csv_field(g.evict_at), g.chunk, g.kv_bytes, g.prefill,
                        csv_field(g.layout), g.seed, csv_field(curve.method), curve.bound,
                        curve.stand_in, report.options.least, kind(curve.footprint),
                        curve.footprint.x, kind(curve.peak_kv), curve.peak_kv.x, curve.peak_bytes.x,
                        regrets_of(curve), curve.points.size());
  }
  return text;
}

json critical_schema() { return schema_of(columns()); }

json to_json(const SweepReport& report, const Plan& plan) {
  json out{{"schema_version", 1},
           {"kvspan", {{"version", build_info().version}, {"sweep", plan.version}}},
           {"retained_least", report.options.least},
           {"bootstrap", {{"draws", report.options.draws}, {"seed", report.options.seed}}},
           {"cells",
            {{"done", report.counts.done},
             {"left_out", report.counts.left_out},
             {"failed", report.counts.failed},
             {"left", report.counts.left}}}};
  for (const char* list : {"groups", "curves", "fronts", "ranking"}) out[list] = json::array();
  for (const Group& group : report.groups) out["groups"].push_back(group_json(group));
  for (const Curve& curve : report.curves) out["curves"].push_back(curve_json(curve, plan));
  for (const Front& front : report.fronts) {
    json cells = json::array();
    for (const std::uint64_t cell : front.cells) cells.push_back(id_text(cell));
    out["fronts"].push_back(
        {{"trace", plan.traces[front.trace].path}, {"group", front.group}, {"cells", cells}});
  }
  for (const Ranked& r : report.ranking) {
    out["ranking"].push_back(
        {{"group", r.group},
         {"method", r.method},
         {"traces", r.traces},
         {"mean_rank", r.mean_rank},
         {"rank_interval", interval_json(r.rank_interval)},
         {"mean_critical_footprint", r.mean_critical ? json(*r.mean_critical) : json(nullptr)},
         {"critical_interval", interval_json(r.critical_interval)}});
  }
  return out;
}

}  // namespace kvspan::sweep
