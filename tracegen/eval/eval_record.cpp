// SPDX-License-Identifier: Apache-2.0
#include "tracegen/eval/eval_record.h"

#include <algorithm>
#include <stdexcept>

#include <nlohmann/json.hpp>

#include "sim/base/text.h"

namespace kvspan::tracegen {
namespace {

using nlohmann::json;

json value_or_null(const std::optional<double>& value) { return value ? json(*value) : json(); }

json open_json(const std::optional<OpenLoop>& open) {
  if (!open) return nullptr;
  return {{"retained_mass", open->retained},
          {"output_error", value_or_null(open->output_error)},
          {"spans_left", value_or_null(open->spans)},
          {"agreement", open->agreement},
          {"agreement_by_row", open->drift}};
}

json outcome_json(const Outcome& outcome) {
  return {{"answer", valid_utf8(outcome.answer)},
          {"answer_tokens", outcome.answer_tokens},
          {"score", outcome.score},
          {"nll", value_or_null(outcome.nll)},
          {"delta_nll", value_or_null(outcome.delta_nll)},
          {"kl", value_or_null(outcome.divergence)},
          {"replay", open_json(outcome.open)}};
}

json sample_json(const SampleResult& sample) {
  json answers = json::array();
  for (const std::string& answer : sample.sample.answers) answers.push_back(valid_utf8(answer));
  json refused = json::array();
  for (const Refusal& refusal : sample.refused) {
    refused.push_back(
        {{"label", valid_utf8(refusal.label)}, {"reason", valid_utf8(refusal.reason)}});
  }
  return {{"task", valid_utf8(sample.task)},
          {"name", valid_utf8(sample.sample.name)},
          {"scoring", scoring_name(sample.sample.scoring)},
          {"answers", std::move(answers)},
          {"evict_at", sample.evict_at.empty() ? json() : json(valid_utf8(sample.evict_at))},
          {"input_sha256", sample.input_sha256},
          {"prompt_tokens", sample.prompt_tokens},
          {"reference_tokens", sample.reference_tokens},
          {"refused", std::move(refused)}};
}

std::optional<double> number_at(const json& object, const char* key) {
  const json& value = object.at(key);
  return value.is_null() ? std::nullopt : std::optional(value.get<double>());
}

std::optional<PhaseFidelity> phase_at(const json& fidelity, const char* key) {
  const json& phase = fidelity.at(key);
  if (phase.is_null()) return std::nullopt;
  PhaseFidelity out;
  out.mass_mean = phase.at("retained_mass").at("mean").get<double>();
  if (const json& error = phase.at("output_error"); !error.is_null()) {
    out.has_error = true;
    out.error_mean = number_at(error, "mean").value_or(0);
  }
  return out;
}

RunResult run_at(const json& found) {
  RunResult out;
  out.spec = found.at("policy").get<std::string>();
  out.label = found.at("label").get<std::string>();
  out.klass = found.at("class").get<std::string>();
  out.bound = found.at("bound").get<bool>();
  out.notes = found.at("notes").get<std::vector<std::string>>();
  out.metrics.footprint = found.at("footprint").get<double>();
  out.metrics.peak_kv = found.at("peak_kv").get<double>();
  out.metrics.peak_bytes.total = found.at("peak_bytes").at("total").get<std::int64_t>();
  if (const json& fidelity = found.at("fidelity"); !fidelity.is_null()) {
    out.fidelity.emplace();
    out.fidelity->all = phase_at(fidelity, "all");
    out.fidelity->decode = phase_at(fidelity, "decode");
  }
  return out;
}

Outcome outcome_at(const json& found) {
  Outcome out;
  out.answer = found.at("answer").get<std::string>();
  out.answer_tokens = found.at("answer_tokens").get<std::int64_t>();
  out.score = found.at("score").get<double>();
  out.nll = number_at(found, "nll");
  out.delta_nll = number_at(found, "delta_nll");
  out.divergence = number_at(found, "kl");
  if (const json& open = found.at("replay"); !open.is_null()) {
    out.open = OpenLoop{open.at("retained_mass").get<double>(), number_at(open, "output_error"),
                        number_at(open, "spans_left"), open.at("agreement").get<double>()};
  }
  return out;
}

}  // namespace

json document_of(const SampleResult& sample, Timelines timelines) {
  json out = to_json(sample.report, timelines);
  out["sample"] = sample_json(sample);
  for (std::size_t r = 0; r < sample.outcomes.size(); ++r)
    out["runs"][r]["eval"] = outcome_json(sample.outcomes[r]);
  return out;
}

SampleResult sample_of(const json& document) {
  SampleResult out;
  const json& about = document.at("sample");
  out.task = about.at("task").get<std::string>();
  out.sample.name = about.at("name").get<std::string>();
  out.sample.answers = about.at("answers").get<std::vector<std::string>>();
  const auto scoring = scoring_named(about.at("scoring").get<std::string>());
  if (!scoring) throw std::invalid_argument("found no known scoring");
  out.sample.scoring = *scoring;
  if (const json& span = about.at("evict_at"); !span.is_null())
    out.evict_at = span.get<std::string>();
  out.input_sha256 = about.at("input_sha256").get<std::string>();
  out.prompt_tokens = about.at("prompt_tokens").get<std::int64_t>();
  out.reference_tokens = about.at("reference_tokens").get<std::int64_t>();
  for (const json& refusal : about.at("refused"))
    out.refused.push_back({refusal.at("label"), refusal.at("reason")});
  out.report.trace_path = document.at("trace").at("path").get<std::string>();
  out.report.trace.model = document.at("trace").at("model").get<std::string>();
  out.report.chunk = document.at("chunk").get<std::int64_t>();
  const json& accounting = document.at("accounting");
  out.report.accounting = {accounting.at("kv_bytes").get<std::int64_t>(),
                           accounting.at("prefill") == "layerwise",
                           accounting.at("layout").get<std::string>()};
  for (const json& run : document.at("runs")) {
    out.report.runs.push_back(run_at(run));
    out.report.runs.back().ledger.plan.evict_point = document.at("evict_at").get<RowIndex>();
    out.outcomes.push_back(outcome_at(run.at("eval")));
  }
  if (out.outcomes.empty()) throw std::invalid_argument("found a sample without runs");
  return out;
}

json with_runs(json document, const std::vector<std::string>& labels) {
  json runs = json::array();
  for (json& run : document.at("runs")) {
    if (std::ranges::count(labels, run.at("label").get<std::string>()) > 0)
      runs.push_back(std::move(run));
  }
  document["runs"] = std::move(runs);
  return document;
}

}  // namespace kvspan::tracegen
