// SPDX-License-Identifier: Apache-2.0
#include "cli/plan_output.h"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "sim/base/text.h"
#include "sim/report/json.h"

namespace kvspan::cli {
namespace {

using nlohmann::json;

std::string bytes_text(double bytes) { return human_bytes(static_cast<std::int64_t>(bytes)); }

json quantiles_json(const Quantiles& q) {
  return {{"mean", q.mean}, {"p50", q.p50}, {"p95", q.p95}, {"p99", q.p99}, {"max", q.most}};
}

json row_json(const PlanRow& row) {
  const FleetFigures& f = row.figures;
  json seconds = json::array(), most = json::array(), mean = json::array();
  for (const FleetInstant& piece : f.timeline) {
    seconds.push_back(piece.end);
    most.push_back(piece.most);
    mean.push_back(piece.mean);
  }
  return {{"policy", row.spec},
          {"label", row.label},
          {"basis", text_of(row.basis)},
          {"seconds", f.seconds},
          {"completed", f.completed},
          {"rejected", f.rejected},
          {"preemptions", f.preemptions},
          {"largest_batch", f.largest_batch},
          {"resident_bytes", quantiles_json(f.bytes)},
          {"wait_seconds", quantiles_json(f.wait)},
          {"stay_seconds", quantiles_json(f.stay)},
          {"running_requests", f.running},
          {"shared_prompt_share", f.shared_tokens},
          {"little",
           {{"requests_per_second", row.little.rate},
            {"service_seconds", row.little.service},
            {"running_requests", row.little.running},
            {"resident_bytes", row.little.bytes},
            {"requests_per_second_by_memory", row.little.rate_by_memory},
            {"requests_per_second_by_prefill", row.little.rate_by_prefill}}},
          {"requests_per_second_that_fit", row.rate ? json(*row.rate) : json()},
          {"timeline", {{"end_seconds", seconds}, {"max_bytes", most}, {"mean_bytes", mean}}}};
}

const char* sign_of(Basis basis) {
  return basis == Basis::bound ? "<= " : basis == Basis::scaled ? "~ " : "";
}

std::vector<std::string> cells(const PlanSettings& s, const PlanAnswer& answer,
                               const PlanRow& row) {
  const FleetFigures& f = row.figures;
  const auto capacity =
      static_cast<double>(answer.memory.left) * static_cast<double>(answer.replicas);
  std::vector<std::string> out = {row.label,
                                  sign_of(row.basis) + bytes_text(f.bytes.mean),
                                  bytes_text(f.bytes.p99),
                                  bytes_text(f.bytes.most),
                                  fmt::format("{:.0f} %", 100 * f.bytes.most / capacity),
                                  fmt::format("{}", f.largest_batch),
                                  time_text(f.wait.p50),
                                  time_text(f.wait.p99),
                                  fmt::format("{}", f.preemptions),
                                  fmt::format("{}", f.rejected),
                                  bytes_text(row.little.bytes),
                                  fmt::format("{:.3g}", row.little.rate_by_memory)};
  if (s.find_rate) out.push_back(fmt::format("{:.3g}", row.rate.value_or(0)));
  return out;
}

}  // namespace

void describe(const std::vector<FleetRequest>& requests, PlanAnswer& answer) {
  answer.requests = std::ssize(requests);
  answer.seconds = requests.back().arrival - requests.front().arrival;
  std::vector<double> prompts, generated;
  for (const FleetRequest& r : requests) {
    prompts.push_back(static_cast<double>(r.prompt));
    generated.push_back(static_cast<double>(r.generated));
  }
  answer.prompt = quantiles_of(std::move(prompts));
  answer.generated = quantiles_of(std::move(generated));
}

json plan_json(const PlanSettings& s, const std::vector<std::string>& command,
               const PlanAnswer& answer) {
  json rows = json::array();
  for (const PlanRow& row : answer.rows) rows.push_back(row_json(row));
  return {{"schema_version", 1},
          {"kvspan", program_json()},
          {"command", command},
          {"model", s.model},
          {"gpus", s.gpus},
          {"tp", s.deployment.tp},
          {"replicas", answer.replicas},
          {"kv_capacity_bytes_per_gpu", answer.memory.left},
          {"prefill_tokens_per_second", s.prefill_speed},
          {"decode_tokens_per_second", s.decode_speed},
          {"block_tokens", s.block},
          {"max_batch", s.most_running},
          {"requests",
           {{"source", answer.source},
            {"count", answer.requests},
            {"skipped", answer.skipped},
            {"seconds", answer.seconds},
            {"prompt_tokens", quantiles_json(answer.prompt)},
            {"generated_tokens", quantiles_json(answer.generated)}}},
          {"policies", rows}};
}

void print_plan(const PlanSettings& s, const ModelGeometry& model, const PlanAnswer& answer) {
  fmt::print("{} on {} GPU{}{}: {} replica{} of {}, {} for KV on each GPU\n", model.name, s.gpus,
             s.gpus == 1 ? "" : "s", s.gpu.empty() ? "" : fmt::format(" ({})", s.gpu),
             answer.replicas, answer.replicas == 1 ? "" : "s", s.deployment.tp,
             human_bytes(answer.memory.left));
  fmt::print(
      "requests: {}: {} in {}, {:.3g} a second{}\n", answer.source, answer.requests,
      time_text(answer.seconds),
      static_cast<double>(answer.requests) / std::max(answer.seconds, 1e-9),
      answer.skipped > 0 ? fmt::format("; {} without a prompt left out", answer.skipped) : "");
  fmt::print("  prompts {:.0f} tokens (p99 {:.0f}), answers {:.0f} (p99 {:.0f})\n",
             answer.prompt.mean, answer.prompt.p99, answer.generated.mean, answer.generated.p99);
  fmt::print("as given: {:.0f} prompt tokens a second of a replica, {:.0f} a second of a request\n",
             s.prefill_speed, s.decode_speed);
  std::vector<std::vector<std::string>> table = {{"policy", "KV mean", "p99", "peak", "full to",
                                                  "batch", "wait p50", "p99", "preempted",
                                                  "rejected", "Little: KV", "memory/s"}};
  if (s.find_rate) table.front().emplace_back("fits/s");
  for (const PlanRow& row : answer.rows) table.push_back(cells(s, answer, row));
  fmt::print("\n{}\n", align(table));
  fmt::print(
      "KV: of all replicas, of one GPU of each; batch: the most requests of a replica at once;\n"
      "Little: rate x byte-seconds, if nobody waited; memory/s: the rate that would fill all "
      "memory\n"
      "on average, a bound; prefill alone allows {:.3g} a second",
      answer.rows.empty() ? 0 : answer.rows.front().little.rate_by_prefill);
  if (s.find_rate)
    fmt::print(";\nfits: the largest rate without preemption, p99 of the wait at most {:g} s",
               s.max_wait);
  fmt::print("\n");
  for (const PlanRow& row : answer.rows) {
    if (row.figures.shared_tokens > 0)
      fmt::print("{}: {:.1f} % of prompt tokens were shared\n", row.label,
                 100 * row.figures.shared_tokens);
  }
}

}  // namespace kvspan::cli
