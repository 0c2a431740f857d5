// SPDX-License-Identifier: Apache-2.0
#include "gui/model/evaluation.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "gui/model/result_node.h"
#include "sim/base/text.h"

namespace kvspan::gui {
namespace {

using nlohmann::json;
using Kind = sweep::Critical::Kind;

constexpr std::int64_t kMostSamples = std::numeric_limits<std::int32_t>::max();

double number(const Node& node) {
  const double value = node.number_or_null();
  if (std::isnan(value)) node.wrong("found null, expected a number");
  return value;
}

std::optional<double> number_if(const Node& node) {
  const double value = node.number_or_null();
  return std::isnan(value) ? std::nullopt : std::optional(value);
}

Node item(const Node& list, std::size_t i, std::size_t count) {
  if (list.size() != count)
    list.wrong(fmt::format("found {} values, expected {}", list.size(), count));
  return list.item(i);
}

sweep::Interval interval(const Node& node) {
  return {number(item(node, 0, 2)), number(item(node, 1, 2))};
}

sweep::Critical critical(const Node& node) {
  const std::string kind = node["kind"].text();
  sweep::Critical out;
  if (kind == "unknown") return out;
  if (kind == "exact") {
    out.kind = Kind::exact;
  } else if (kind == "below" || kind == "above") {
    out.kind = kind == "below" ? Kind::below : Kind::above;
  } else {
    node["kind"].wrong(
        fmt::format("found {}, expected exact, below, above or unknown", in_quotes(kind)));
  }
  out.x = number(node["value"]);
  return out;
}

Evaluation::Policy read_policy(const Node& node) {
  Evaluation::Policy out;
  out.label = one_line(node["label"].text());
  out.method = one_line(node["method"].text());
  out.score = number(node["score"]);
  out.footprint = number(node["footprint"]);
  out.peak_kv = number(node["peak_kv"]);
  out.scores = interval(node["score_interval"]);
  out.footprints = interval(node["footprint_interval"]);
  out.nll = number_if(node["nll"]);
  out.delta_nll = number_if(node["delta_nll"]);
  out.kl = number_if(node["kl"]);
  out.retained = number_if(node["retained_mass"]);
  return out;
}

Evaluation::Critical read_critical(const Node& node) {
  Evaluation::Critical out;
  out.method = one_line(node["method"].text());
  out.footprint = critical(node["footprint"]);
  out.peak_kv = critical(node["peak_kv"]);
  out.low = number_if(item(node["footprint_interval"], 0, 2));
  out.high = number_if(item(node["footprint_interval"], 1, 2));
  return out;
}

Evaluation::Answer read_answer(const Node& run) {
  const Node node = run["eval"];
  Evaluation::Answer out;
  out.text = node["answer"].text();
  out.score = number(node["score"]);
  out.nll = number_if(node["nll"]);
  out.delta_nll = number_if(node["delta_nll"]);
  out.kl = number_if(node["kl"]);
  const Node spans = run["spans"];
  for (std::size_t i = 0; i < spans.size(); ++i) {
    if (const auto left = number_if(spans.item(i)["resident_share"]))
      out.spans.emplace_back(one_line(spans.item(i)["name"].text()), *left);
  }
  return out;
}

Evaluation::Sample read_sample(const Node& result, std::size_t index, std::size_t policies) {
  const Node node = result["sample"];
  Evaluation::Sample out;
  out.result = index;
  out.name = one_line(node["name"].text());
  out.prompt_tokens = node["prompt_tokens"].integer(1, kMostSamples);
  const Node answers = node["answers"];
  for (std::size_t i = 0; i < answers.size(); ++i) out.answers.push_back(answers.item(i).text());
  for (std::size_t r = 0; r < policies; ++r)
    out.of_run.push_back(read_answer(item(result["runs"], r, policies)));
  return out;
}

// Samples are the results [first, ..) of the file.
Evaluation::Task read_task(const Node& node, const Node& results, std::size_t first) {
  Evaluation::Task task;
  task.name = one_line(node["task"].text());
  const json why = node["no_critical"].value();
  if (why.is_string()) task.no_critical = one_line(why.get<std::string>());
  const Node policies = node["policies"];
  for (std::size_t i = 0; i < policies.size(); ++i)
    task.policies.push_back(read_policy(policies.item(i)));
  if (task.policies.empty()) policies.wrong("found no policy");
  const Node criticals = node["critical"];
  for (std::size_t i = 0; i < criticals.size(); ++i)
    task.criticals.push_back(read_critical(criticals.item(i)));
  const Node refused = node["refused"];
  for (std::size_t i = 0; i < refused.size(); ++i)
    task.refused.emplace_back(one_line(refused.item(i)["label"].text()),
                              one_line(refused.item(i)["reason"].text()));
  const auto samples = static_cast<std::size_t>(node["samples"].integer(1, kMostSamples));
  if (first + samples > results.size()) {
    results.wrong(
        fmt::format("found {} results, expected the samples of all tasks", results.size()));
  }
  for (std::size_t s = first; s < first + samples; ++s)
    task.samples.push_back(read_sample(results.item(s), s, task.policies.size()));
  return task;
}

}  // namespace

EvaluationPtr read_evaluation(const std::filesystem::path& path, const json& whole) {
  if (!whole.is_object() || !whole.contains("eval")) return nullptr;
  const Node root(path, whole, "");
  auto out = std::make_shared<Evaluation>();
  out->path = path;
  out->least = number(root["eval"]["at"]);
  const Node tasks = root["eval"]["tasks"];
  std::size_t samples = 0;
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    out->tasks.push_back(read_task(tasks.item(t), root["results"], samples));
    samples += out->tasks.back().samples.size();
  }
  if (out->tasks.empty()) tasks.wrong("found no task");
  return out;
}

}  // namespace kvspan::gui
