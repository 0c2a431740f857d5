// SPDX-License-Identifier: Apache-2.0
#include "sim/report/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/build_info.h"
#include "sim/base/text.h"
#include "sim/report/listing.h"
#include "sim/report/run_names.h"
#include "sim/report/timeline_rows.h"

namespace kvspan {

using nlohmann::json;

namespace {

json number(double value) { return std::isfinite(value) ? json(value) : json(nullptr); }

json number_or_null(const std::optional<double>& value) {
  return value ? number(*value) : json(nullptr);
}

// The shortest decimal that is the same float: widened, 0.9f would become 0.8999999761581421.
json number(float value) {
  if (!std::isfinite(value)) return nullptr;
  const std::string text = fmt::format("{}", value);
  double result = 0;
  std::from_chars(text.data(), text.data() + text.size(), result);
  return result;
}

json numbers(const std::vector<std::vector<double>>& table) {
  json result = json::array();
  for (const std::vector<double>& line : table) {
    json values = json::array();
    for (const double value : line) values.push_back(number(value));
    result.push_back(std::move(values));
  }
  return result;
}

json text_or_null(const std::string& text) {
  return text.empty() ? json(nullptr) : json(valid_utf8(text));
}

json phase_json(const std::optional<PhaseFidelity>& phase) {
  if (!phase) return nullptr;
  json result;
  result["retained_mass"] = {{"mean", number(phase->mass_mean)},
                             {"p5", number(phase->mass_p5)},
                             {"min", number(phase->mass_min)},
                             {"upper", nullptr}};
  if (const auto& upper = phase->mass_upper) {
    result["retained_mass"]["upper"] = {
        {"mean", number(upper->mean)}, {"p5", number(upper->p5)}, {"min", number(upper->min)}};
  }
  result["output_error"] = nullptr;
  if (phase->has_error) {
    result["output_error"] = {{"mean", number(phase->error_mean)},
                              {"p95", number(phase->error_p95)},
                              {"max", number(phase->error_max)}};
  }
  if (phase->logit_error) result["logit_error"] = {{"mean", number(*phase->logit_error)}};
  return result;
}

json fidelity_json(const RunResult& run) {
  if (!run.fidelity) return nullptr;
  return {{"all", phase_json(run.fidelity->all)},
          {"prefill", phase_json(run.fidelity->prefill)},
          {"decode", phase_json(run.fidelity->decode)},
          {"rows_measured", run.fidelity->rows_measured}};
}

json timeline_json(const RunResult& run) {
  const Timeline& line = run.metrics.timeline;
  json result = {{"row", json::array()},
                 {"resident_entries", json::array()},
                 {"resident_bytes", json::array()},
                 {"overhead_bytes", json::array()},
                 {"active_entries", json::array()},
                 {"retained_mass", json::array()}};
  for (const std::size_t row : timeline_rows(run)) {
    result["row"].push_back(row);
    result["resident_entries"].push_back(line.resident_entries[row]);
    result["resident_bytes"].push_back(line.resident_bytes[row]);
    result["overhead_bytes"].push_back(line.overhead_bytes[row]);
    result["active_entries"].push_back(line.active_entries[row]);
    result["retained_mass"].push_back(number(retained_at(run, row)));
  }
  result["retained_mass_upper"] = nullptr;
  if (run.fidelity && !run.fidelity->row_mass_upper.empty()) {
    json& upper = result["retained_mass_upper"] = json::array();
    for (const json& row : result["row"])
      upper.push_back(number(run.fidelity->row_mass_upper[row.get<std::size_t>()]));
  }
  return result;
}

json per_layer_json(const RunReport& report, const RunResult& run) {
  json result = json::array();
  for (std::size_t l = 0; l < run.metrics.per_layer.size(); ++l) {
    const LayerMetrics& layer = run.metrics.per_layer[l];
    const auto mass = [&](std::vector<double> Fidelity::*of) {
      const bool known = run.fidelity && l < (*run.fidelity.*of).size();
      return known ? number((*run.fidelity.*of)[l]) : json(nullptr);
    };
    const auto& ids = report.trace.layer_ids;
    result.push_back({{"layer", l < ids.size() ? ids[l] : static_cast<int>(l)},
                      {"footprint", number(layer.footprint)},
                      {"peak_kv", number(layer.peak_kv)},
                      {"peak_bytes", layer.peak_bytes},
                      {"retained_mass", mass(&Fidelity::layer_mass)},
                      {"retained_mass_upper", mass(&Fidelity::layer_mass_upper)}});
  }
  return result;
}

// Whatever holds no other list or object is one line.
void add_text(const json& value, std::size_t depth, std::string& text) {
  if (std::none_of(value.begin(), value.end(), [](const json& v) { return v.is_structured(); })) {
    text += value.dump();
    return;
  }
  const std::string indent(depth + 1, ' ');
  const char* between = value.is_object() ? "{\n" : "[\n";
  for (const auto& [key, below] : value.items()) {
    text += between + indent;
    if (value.is_object()) text += json(key).dump() + ": ";
    add_text(below, depth + 1, text);
    between = ",\n";
  }
  text += "\n" + std::string(depth, ' ') + (value.is_object() ? "}" : "]");
}

json score_pass_json(const ScoreDevice& device) {
  json result = {{"device", valid_utf8(device.name)}, {"audit", nullptr}};
  if (const auto& audit = device.audit) {
    result["audit"] = {{"share", audit->share},
                       {"rows", audit->rows},
                       {"values", audit->values},
                       {"retained_mass", number(audit->retained)},
                       {"output_error", number(audit->error)}};
  }
  return result;
}

json match_json(const RunResult::Match& match) {
  return {{"what", match.what},
          {"wanted", number(match.wanted)},
          {"reached", number(match.reached)},
          {"reachable", match.reachable},
          {"met", match.met},
          {"lowest", number(match.lowest)},
          {"highest", number(match.highest)},
          {"next", number_or_null(match.next)},
          {"upper", number_or_null(match.upper)},
          {"least_footprint", number_or_null(match.least_footprint)}};
}

}  // namespace

json peak_json(const PeakBytes& peak) {
  return {{"total", peak.total},     {"kv", peak.kv},         {"overhead", peak.overhead},
          {"prefill", peak.prefill}, {"decode", peak.decode}, {"row", peak.row}};
}

json figures_json(const RunReport& report, const RunResult& run) {
  const Metrics& metrics = run.metrics;
  json result = {{"policy", valid_utf8(run.spec)},
                 {"label", valid_utf8(run.label)},
                 {"method", valid_utf8(method_of(run.label))},
                 {"budget", text_or_null(budget_of(run.spec).value_or(""))},
                 {"parameters", parameters_json(run.spec)},
                 {"amount", text_or_null(chunked_amount(run.spec))},
                 {"class", valid_utf8(run.klass)},
                 {"bound", run.bound},
                 {"footprint", number(metrics.footprint)},
                 {"peak_kv", number(metrics.peak_kv)},
                 {"entry_rows", metrics.entry_rows},
                 {"full_entry_rows", metrics.full_entry_rows},
                 {"host_footprint", number(metrics.host_footprint)},
                 {"peak_bytes", peak_json(metrics.peak_bytes)},
                 {"byte_rows", metrics.byte_rows},
                 {"host_peak_bytes", metrics.host_peak_bytes},
                 {"fidelity", fidelity_json(run)},
                 {"spans", json::array()},
                 {"undecided", run.undecided ? json(*run.undecided) : json(nullptr)},
                 {"layouts", json::object()},
                 {"notes", notes_of(report, run)}};
  result["traffic"] = {{"entries_read", metrics.entries_read}, {"bytes_read", metrics.bytes_read}};
  if (run.fidelity) {
    for (const SpanResult& span : run.fidelity->spans) {
      result["spans"].push_back({{"name", valid_utf8(span.name)},
                                 {"resident_share", number(span.resident_share)},
                                 {"mass_lost", number(span.mass_lost)},
                                 {"mass_lost_upper", number_or_null(span.mass_lost_upper)}});
    }
  }
  for (const auto& [name, peak] : metrics.layouts) result["layouts"][name] = peak_json(peak);
  if (run.match) result["match"] = match_json(*run.match);
  if (run.regret) {
    result["optimum"] = {{"retained_mass", number(run.regret->optimum)},
                         {"regret", number(run.regret->regret)},
                         {"footprint", number(run.regret->footprint)}};
  }
  return result;
}

json program_json() {
  const BuildInfo build = build_info();
  return {{"version", build.version}, {"git", build.git}, {"build", build.build}};
}

json root_json(const RunReport& report) {
  const TraceMeta& trace = report.trace;
  json command = json::array();
  for (const std::string& word : report.command) command.push_back(valid_utf8(word));
  return {{"schema_version", 1},
          {"kvspan", program_json()},
          {"command", std::move(command)},
          {"files",
           {{"lifetimes", text_or_null(report.lifetimes_path)},
            {"timeline", text_or_null(report.timeline_path)}}},
          {"trace",
           {{"path", valid_utf8(report.trace_path)},
            {"sha256", report.trace_sha256},
            {"layers", trace.layers},
            {"model_layers", trace.model_layers},
            {"query_heads", trace.query_heads},
            {"kv_heads", trace.kv_heads},
            {"head_dim", trace.head_dim},
            {"tokens", trace.tokens},
            {"prompt_tokens", trace.prompt_tokens},
            {"model", valid_utf8(trace.model)}}},
          {"chunk", report.chunk},
          {"evict_at",
           report.runs.empty() ? json(nullptr) : json(report.runs.front().ledger.plan.evict_point)},
          {"accounting",
           {{"kv_bytes", report.accounting.kv_bytes},
            {"prefill", report.accounting.layerwise ? "layerwise" : "whole"},
            {"layout", report.accounting.layout}}}};
}

json to_json(const RunReport& report, Timelines timelines) {
  json root = root_json(report);
  if (!report.frontier.empty()) {
    json& frontier =
        root["frontier"] = {{"footprint", json::array()}, {"retained_mass", json::array()}};
    for (const FrontierPoint& point : report.frontier) {
      frontier["footprint"].push_back(number(point.footprint));
      frontier["retained_mass"].push_back(number(point.retained));
    }
  }
  if (report.device) root["score_pass"] = score_pass_json(*report.device);
  root["runs"] = json::array();
  for (const RunResult& run : report.runs) {
    json result = figures_json(report, run);
    if (timelines == Timelines::all) result["timeline"] = timeline_json(run);
    result["per_layer"] = per_layer_json(report, run);
    result["per_head"] = {
        {"footprint", numbers(run.metrics.head_footprint)},
        {"peak_kv", numbers(run.metrics.head_peak_kv)},
        {"retained_mass", run.fidelity ? numbers(run.fidelity->head_mass) : json(nullptr)},
        {"retained_mass_upper", run.fidelity && !run.fidelity->head_mass_upper.empty()
                                    ? numbers(run.fidelity->head_mass_upper)
                                    : json(nullptr)}};
    root["runs"].push_back(std::move(result));
  }
  return root;
}

std::string file_text(const json& value) {
  std::string text;
  add_text(value, 0, text);
  return text + "\n";
}

}  // namespace kvspan
