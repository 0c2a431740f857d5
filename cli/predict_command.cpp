// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/outputs.h"
#include "cli/policy_options.h"
#include "cli/predict_output.h"
#include "cli/validators.h"
#include "sim/base/error.h"
#include "sim/predict/calibration.h"
#include "sim/run/run.h"
#include "sim/trace/safetensors.h"

namespace kvspan::cli {
namespace {

// Shown when no policy is named: the rest by --policy all.
const std::vector<std::string> kDefaultPolicies = {
    "full", "streaming_llm", "h2o", "snapkv", "chunked(snapkv)", "quest", "kivi"};

// Whether a runtime that knows the model's windows could hold less.
bool slides_within(const ModelGeometry& model, std::int64_t tokens) {
  return std::any_of(model.sliding_window.begin(), model.sliding_window.end(),
                     [&](std::int64_t window) { return window > 0 && window < tokens; });
}

std::vector<RecipeSpec> specs_of(const PredictSettings& s, const ModelGeometry& model) {
  std::vector<RecipeSpec> specs =
      expand_policies(s.policies.empty() ? kDefaultPolicies : s.policies, s.budgets);
  const bool surveys = s.policies.empty() ||
                       std::find(s.policies.begin(), s.policies.end(), "all") != s.policies.end();
  if (surveys && slides_within(model, s.prompt + s.generated)) {
    const auto full = std::find_if(specs.begin(), specs.end(),
                                   [](const RecipeSpec& spec) { return to_text(spec) == "full"; });
    if (full != specs.end()) specs.insert(full + 1, parse_spec("full(model_window=evict)"));
  }
  return specs;
}

PredictAnswer answer(const PredictSettings& s, const std::vector<RecipeSpec>& specs,
                     const ModelGeometry& model) {
  const Workload workload{s.prompt, s.generated, s.chunk};
  Accounting accounting;
  accounting.kv_bytes = s.kv_bytes;
  accounting.layerwise = s.prefill == "layerwise";
  accounting.layout = s.layout;
  std::optional<Calibration> calibration;
  if (!s.calibrate.empty()) calibration.emplace(s.calibrate);
  const Calibration* measured = calibration ? &*calibration : nullptr;
  PredictAnswer out;
  if (calibration) out.calibrated_on = calibration->where();
  if (s.asks_what_fits()) {
    out.memory = fixed_memory(model, workload, s.deployment);
    if (out.memory->left > 0)
      out.vllm = vllm_figures(model, workload, s.kv_bytes, out.memory->left, s.deployment.tp);
  }
  for (const RecipeSpec& spec : specs) {
    out.labels.push_back(label_of(spec));
    out.predictions.push_back(predict_model(spec, model, workload, accounting, measured));
    if (model.latent) out.predictions.back().layouts.erase("query_head");
    if (out.vllm) {
      out.capacities.push_back(
          capacity_of(spec, model, workload, accounting, s.deployment, measured));
    }
  }
  return out;
}

void list_models() {
  for (const std::string& name : known_models()) fmt::print("{}\n", name);
}

void refuse_half_a_question(const PredictSettings& s, const CLI::App& sub) {
  if (s.asks_what_fits()) return;
  for (const char* name : {"--gpu-utilization", "--reserve", "--tp", "--batch", "--weight-dtype"}) {
    if (sub.count(name) > 0)
      throw ConfigError(fmt::format("predict: {} requires --gpu-memory or --gpu", name));
  }
}

void run(const PredictSettings& given, const CLI::App& sub, const Context& context) {
  PredictSettings s = given;
  if (s.json) s.out = json_output(s.out);
  if (s.model == "?") return list_models();
  if (s.prompt == 0) throw ConfigError("predict: --prompt is required (see kvspan predict --help)");
  read_deployment(s);
  refuse_half_a_question(s, sub);
  const ModelGeometry model = load_model(s.model);
  if (model.latent && s.layout == "query_head") {
    throw ConfigError(
        fmt::format("layout 'query_head': found a latent cache ('{}'), which no query "
                    "head has a copy of; expected another layout, such as 'ideal'",
                    model.name));
  }
  const std::vector<RecipeSpec> specs = specs_of(s, model);
  std::vector<std::filesystem::path> inputs = files_of_policies(s.policies, specs);
  inputs.insert(inputs.end(), {s.model, s.model + "/config.json", s.calibrate});
  Outputs outputs({{"--out", s.out}}, inputs);
  const PredictAnswer found = answer(s, specs, model);
  // Before the table: whoever reads that may stop doing so.
  outputs.write_text("--out",
                     [&] { return answer_json(s, context.command, model, found).dump(1) + "\n"; });
  if (!s.json) print_answer(s, model, found);
  outputs.finish(true);
  if (!found.memory) return;
  const auto any = [&](const auto& holds) {
    return std::any_of(found.capacities.begin(), found.capacities.end(), holds);
  };
  if (any([](const Capacity& f) { return f.fits; })) return;
  const bool unsure =
      any([](const Capacity& f) { return f.basis == Basis::bound && !f.beyond_model; });
  throw Error(found.capacities.empty() ? "nothing fits: no memory is left for KV"
              : unsure ? "nothing fits for certain: no policy of the table, as asked"
                       : "nothing fits: no policy of the table, as asked",
              kNothingFits);
}

}  // namespace

void add_predict(CLI::App& app, const Context& context) {
  auto s = std::make_shared<PredictSettings>();
  CLI::App* sub =
      app.add_subcommand("predict", "Footprint, peak and bytes from closed forms, without a trace");
  sub->add_option("--model", s->model,
                  "A known model (? lists them), a config.json or its folder, or a trace")
      ->required()
      ->type_name("NAME|FILE");
  sub->add_option("--prompt", s->prompt, "Prompt tokens, n")->check(at_least(1))->type_name("N");
  sub->add_option("--gen", s->generated, "Generated tokens, m")->check(at_least(0))->type_name("M");
  sub->add_option("--chunk", s->chunk, "Prefill chunk, tokens; 0: the prompt is one pass")
      ->type_name("C");
  add_policy_options(*sub, s->policies, s->budgets);
  add_calibration(*sub, s->calibrate);
  add_kv_options(*sub, *s);
  sub->add_option("--prefill", s->prefill, "When a runtime compresses")
      ->check(CLI::IsMember({"whole", "layerwise"}))
      ->type_name("whole|layerwise");
  sub->add_option("--layout", s->layout, "Storage layout that bytes are counted in")
      ->type_name("NAME");
  sub->add_option("--out", s->out, "Result as JSON")->transform(output_file())->type_name("FILE");
  sub->add_flag("--json", s->json, "That JSON to standard output, and no table: for pipes");
  add_gpu_options(*sub, *s);
  sub->add_option("--batch", s->deployment.batch, "Requests at a time")
      ->check(CLI::Range(1, 1000000))
      ->type_name("B");
  sub->footer(R"help(
Examples:
  kvspan predict --model Llama-3.1-8B --prompt 131072 --gen 128 --chunk 32768
  kvspan predict --model config.json --prompt 8192 --gen 1024 --policy "snapkv(budget={512,2048})" --prefill layerwise
  kvspan predict --model Llama-3.1-8B --prompt 131072 --gen 128 --chunk 32768 --policy "chunked(snapkv(budget=30%,window=64))"
  kvspan predict --model Llama-3.1-70B --prompt 32768 --gen 1024 --chunk 8192 --gpu H100 --tp 4 --batch 8 --kv-dtype fp8

Exit code 6: --gpu-memory or --gpu asks what fits, and no policy of the table does.)help");
  sub->callback([s, sub, &context] { run(*s, *sub, context); });
}

}  // namespace kvspan::cli
