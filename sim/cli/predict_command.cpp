// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/analytic.h"
#include "sim/build_info.h"
#include "sim/cli/commands.h"
#include "sim/model_geometry.h"
#include "sim/run.h"
#include "sim/safetensors.h"
#include "sim/terminal_chart.h"

namespace kvspan::cli {
namespace {

struct Settings {
  std::string model;
  std::int64_t prompt = 0, generated = 0, chunk = 0, kv_bytes = 2;
  std::vector<std::string> policies, budgets;
  std::string prefill = "whole", layout = "ideal", out;
};

nlohmann::json peak_json(const PeakBytes& peak) {
  return {{"total", peak.total},     {"kv", peak.kv},         {"overhead", peak.overhead},
          {"prefill", peak.prefill}, {"decode", peak.decode}, {"row", peak.row}};
}

void run(const Settings& s, const Context& context) {
  const ModelGeometry model = load_model(s.model);
  const Geometry geometry = geometry_of(model, s.prompt, s.generated, s.chunk, s.kv_bytes);
  Accounting accounting;
  accounting.kv_bytes = s.kv_bytes;
  accounting.layerwise = s.prefill == "layerwise";
  accounting.layout = s.layout;
  const bool everything = s.policies.empty();
  std::vector<Prediction> predictions;
  std::vector<std::string> labels;
  for (const RecipeSpec& spec :
       expand_policies(everything ? std::vector<std::string>{"all"} : s.policies, s.budgets)) {
    const Policy policy = make_policy(spec, geometry);
    if (everything && !policy.closed_form) continue;
    labels.push_back(to_text(spec));
    predictions.push_back(predict(policy, geometry, accounting));
  }
  std::vector<std::vector<std::string>> rows = {
      {"policy", "KV footprint", "peak KV", "peak memory", "in prefill", "in decode"}};
  nlohmann::json runs = nlohmann::json::array();
  for (std::size_t i = 0; i < predictions.size(); ++i) {
    const Prediction& p = predictions[i];
    rows.push_back({labels[i], fmt::format("{:.2f} %", 100 * p.footprint),
                    fmt::format("{:.2f} %", 100 * p.peak_kv), human_bytes(p.peak_bytes.total),
                    human_bytes(p.peak_bytes.prefill), human_bytes(p.peak_bytes.decode)});
    nlohmann::json layouts;
    for (const auto& [name, peak] : p.layouts) layouts[name] = peak_json(peak);
    runs.push_back({{"policy", p.spec},
                    {"footprint", p.footprint},
                    {"peak_kv", p.peak_kv},
                    {"entry_rows", p.entry_rows},
                    {"full_entry_rows", p.full_entry_rows},
                    {"peak_bytes", peak_json(p.peak_bytes)},
                    {"byte_rows", p.byte_rows ? nlohmann::json(*p.byte_rows) : nlohmann::json()},
                    {"layouts", layouts},
                    {"notes", p.notes}});
  }
  fmt::print(
      "{}: {} layers, {} query heads, {} KV heads of {}; {} prompt + {} generated tokens, chunk "
      "{}\n",
      model.name, model.layer_ids.size(), model.query_heads, model.kv_heads, model.head_dim,
      s.prompt, s.generated, s.chunk == 0 ? std::string("whole prompt") : std::to_string(s.chunk));
  fmt::print(
      "closed forms, no trace; KV in {} bytes an element, prefill {}, layout {}; weights and "
      "activations not included\n\n",
      s.kv_bytes, s.prefill, s.layout);
  fmt::print("{}", align(rows));
  for (const Prediction& p : predictions) {
    for (const std::string& note : p.notes) fmt::print("  {}: {}\n", p.spec, note);
  }
  if (s.out.empty()) return;
  const BuildInfo build = build_info();
  const nlohmann::json json = {
      {"schema_version", 1},
      {"kvspan", {{"version", build.version}, {"git", build.git}, {"build", build.build}}},
      {"command", context.command},
      {"model",
       {{"name", model.name},
        {"layers", model.layer_ids.size()},
        {"model_layers", model.layers},
        {"query_heads", model.query_heads},
        {"kv_heads", model.kv_heads},
        {"head_dim", model.head_dim}}},
      {"prompt", s.prompt},
      {"generated", s.generated},
      {"chunk", s.chunk},
      {"accounting", {{"kv_bytes", s.kv_bytes}, {"prefill", s.prefill}, {"layout", s.layout}}},
      {"runs", runs}};
  write_file_atomically(s.out, json.dump(1) + "\n");
}

}  // namespace

void add_predict(CLI::App& app, const Context& context) {
  auto s = std::make_shared<Settings>();
  CLI::App* sub =
      app.add_subcommand("predict", "Footprint, peak and bytes from closed forms, without a trace");
  sub->add_option("--model", s->model, "A known model, a config.json or its folder, or a trace")
      ->required()
      ->type_name("NAME|FILE");
  sub->add_option("--prompt", s->prompt, "Prompt tokens, n")
      ->required()
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  sub->add_option("--gen", s->generated, "Generated tokens, m")
      ->check(CLI::NonNegativeNumber)
      ->type_name("M");
  sub->add_option("--chunk", s->chunk, "Prefill chunk, tokens; 0: the prompt is one pass")
      ->type_name("C");
  sub->add_option("--policy", s->policies, "Policy specification or @file.json; may be repeated")
      ->type_name("SPEC")
      ->allow_extra_args(false);
  sub->add_option("--budget", s->budgets, "Budgets for policies that have one")
      ->type_name("B[,B]")
      ->delimiter(',')
      ->allow_extra_args(false);
  sub->add_option("--kv-bytes", s->kv_bytes, "Bytes of one stored element")
      ->check(CLI::Range(1, 16))
      ->type_name("B");
  sub->add_option("--prefill", s->prefill, "When a runtime compresses")
      ->check(CLI::IsMember({"whole", "layerwise"}))
      ->type_name("whole|layerwise");
  sub->add_option("--layout", s->layout, "Storage layout that bytes are counted in")
      ->type_name("NAME");
  sub->add_option("--out", s->out, "Result as JSON")->type_name("FILE");
  sub->footer(R"help(
Examples:
  kvspan predict --model Llama-3.1-8B --prompt 131072 --gen 128 --chunk 32768
  kvspan predict --model config.json --prompt 8192 --gen 1024 --policy "snapkv(budget={512,2048})" --prefill layerwise
  kvspan predict --model Llama-3.1-8B --prompt 131072 --gen 128 --chunk 32768 --policy "chunked(snapkv(budget=30%,window=64))")help");
  sub->callback([s, &context] { run(*s, context); });
}

}  // namespace kvspan::cli
