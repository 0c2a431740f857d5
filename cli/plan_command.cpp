// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <functional>
#include <memory>
#include <optional>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/deployment_options.h"
#include "cli/outputs.h"
#include "cli/plan_output.h"
#include "cli/policy_options.h"
#include "cli/validators.h"
#include "sim/base/error.h"
#include "sim/fleet/memory_curve.h"
#include "sim/predict/calibration.h"
#include "sim/run/run.h"

namespace kvspan::cli {
namespace {

const std::vector<std::string> kPlanPolicies = {"full",   "streaming_llm",   "h2o",
                                                "snapkv", "chunked(snapkv)", "kivi"};

std::vector<FleetRequest> requests_of(const PlanSettings& s, PlanAnswer& answer) {
  if (s.requests.empty()) {
    if (s.prompt.empty()) {
      throw ConfigError(
          "plan: give --requests FILE, or --prompt and --gen for drawn ones (see kvspan plan "
          "--help)");
    }
    answer.source =
        fmt::format("drawn: prompts {}, answers {}, seed {}", s.prompt, s.generated, s.seed);
    return draw_requests({s.count, s.rate.value_or(1), LengthDistribution(s.prompt, "--prompt"),
                          LengthDistribution(s.generated, "--gen"), s.seed});
  }
  std::vector<FleetRequest> out = read_requests(s.requests, &answer.skipped);
  if (s.most > 0 && out.size() > index(s.most)) out.resize(index(s.most));
  answer.source = s.requests;
  if (s.rate) {
    const double span = out.back().arrival;
    if (!(span > 0))
      throw ConfigError("plan: --rate: the requests of the file all arrive at one instant");
    at_rate(out, *s.rate);
  }
  return out;
}

// Activations are those of the longest prompt.
FixedMemory memory_of(const PlanSettings& s, const ModelGeometry& model,
                      const std::vector<FleetRequest>& requests) {
  Workload longest{1, 0, s.chunk};
  for (const FleetRequest& r : requests) longest.prompt = std::max(longest.prompt, r.prompt);
  FixedMemory memory = fixed_memory(model, longest, s.deployment);
  if (memory.left > 0) return memory;
  throw Error(fmt::format("nothing fits: weights and activations leave no memory for KV; {}",
                          memory.advice),
              kNothingFits);
}

std::int64_t replicas_of(const PlanSettings& s) {
  if (s.gpus % s.deployment.tp != 0) {
    throw ConfigError(
        fmt::format("--gpus: found {}, expected a multiple of --tp {}", s.gpus, s.deployment.tp));
  }
  return s.gpus / s.deployment.tp;
}

// Bytes of one token of the full cache on one GPU.
std::int64_t token_bytes(const PlanSettings& s, const ModelGeometry& model,
                         const Accounting& accounting) {
  const RecipeSpec full = parse_spec("full");
  const auto bytes = [&](std::int64_t prompt) {
    return request_bytes(full, model, {prompt, 0, 0}, accounting, s.deployment.tp, nullptr).peak;
  };
  return bytes(2) - bytes(1);
}

PlanRow row_of(const PlanSettings& s, const RecipeSpec& spec, const CurveRequest& request,
               const std::vector<FleetRequest>& requests, FleetSettings fleet,
               const std::function<void(double, const std::string&)>& progress) {
  PlanRow row;
  row.label = label_of(spec);
  row.spec = to_text(spec);
  const MemoryCurve curve(request, requests);
  row.basis = curve.basis();
  const RequestMemory memory{[&](auto prompt) { return curve.prefill(prompt); },
                             [&](auto prompt, auto token) { return curve.decode(prompt, token); }};
  if (row.spec != "full") fleet.shared_token = 0;
  const auto shows = [&](double done) {
    progress(done, row.label);
    return !interrupted();
  };
  row.figures = simulate_fleet(requests, memory, fleet, shows);
  row.little = little(requests, memory, fleet);
  if (s.find_rate) row.rate = largest_rate(requests, memory, fleet, row.little, s.max_wait);
  if (interrupted()) throw Error("stopped", kInterrupted);
  return row;
}

void run(const PlanSettings& given, const Context& context) {
  PlanSettings s = given;
  read_deployment(s);
  if (!s.asks_what_fits()) throw ConfigError("plan: --gpu or --gpu-memory is required");
  const ModelGeometry model = load_model(s.model);
  const std::vector<RecipeSpec> specs =
      expand_policies(s.policies.empty() ? kPlanPolicies : s.policies, s.budgets);
  std::vector<std::filesystem::path> inputs = files_of_policies(s.policies, specs);
  inputs.insert(inputs.end(), {s.model, s.model + "/config.json", s.calibrate, s.requests});
  Outputs outputs({{"--out", s.out}}, inputs);

  PlanAnswer answer;
  const std::vector<FleetRequest> requests = requests_of(s, answer);
  describe(requests, answer);
  answer.memory = memory_of(s, model, requests);
  Accounting accounting;
  accounting.kv_bytes = s.kv_bytes;
  std::optional<Calibration> calibration;
  if (!s.calibrate.empty()) calibration.emplace(s.calibrate);
  const std::int64_t token = token_bytes(s, model, accounting);
  FleetSettings fleet{replicas_of(s),  answer.memory.left, s.most_running,
                      s.prefill_speed, s.decode_speed,     s.share_prefixes ? token : 0};
  answer.replicas = fleet.replicas;
  Progress progress("plan", s.quiet);
  for (const RecipeSpec& spec : specs) {
    const CurveRequest request{spec,
                               model,
                               accounting,
                               s.deployment.tp,
                               s.chunk,
                               s.block * token,
                               calibration ? &*calibration : nullptr};
    const auto rows = static_cast<double>(answer.rows.size());
    const auto shows = [&](double done, const std::string& what) {
      progress((rows + done) / static_cast<double>(specs.size()), what);
    };
    answer.rows.push_back(row_of(s, spec, request, requests, fleet, shows));
  }
  progress(1);
  outputs.write_text("--out", [&] { return plan_json(s, context.command, answer).dump(1) + "\n"; });
  print_plan(s, model, answer);
  outputs.finish(s.quiet);
}

void add_workload(CLI::App& sub, PlanSettings& s) {
  sub.add_option("--requests", s.requests,
                 "Public request trace: Azure LLM inference or BurstGPT CSV, Mooncake JSONL")
      ->transform(input_file())
      ->type_name("FILE");
  sub.add_option("--most", s.most, "At most so many requests of the file; 0: all")->type_name("N");
  sub.add_option("--rate", s.rate,
                 "Requests a second; with a file, its times are stretched (default 1; the file's)")
      ->check(CLI::PositiveNumber)
      ->type_name("R");
  sub.add_option("--count", s.count, "Requests that are drawn")
      ->check(CLI::Range(1, 100000000))
      ->capture_default_str()
      ->type_name("N");
  sub.add_option("--prompt", s.prompt,
                 "Prompts: 1024, uniform(512,2048), exponential(300), lognormal(1024,0.8)")
      ->type_name("DIST");
  sub.add_option("--gen", s.generated, "Answers, likewise")
      ->capture_default_str()
      ->type_name("DIST");
  sub.add_option("--seed", s.seed, "Of what is drawn")->type_name("S");
}

}  // namespace

void add_plan(CLI::App& app, const Context& context) {
  auto s = std::make_shared<PlanSettings>();
  CLI::App* sub = app.add_subcommand(
      "plan", "Many requests over time on given GPUs: resident KV, queues, what fits, per policy");
  sub->add_option("--model", s->model, "A known model, a config.json or its folder, or a trace")
      ->required()
      ->type_name("NAME|FILE");
  add_workload(*sub, *s);
  add_gpu_options(*sub, *s);
  sub->add_option("--gpus", s->gpus, "GPUs in all; --tp of them are one replica")
      ->check(at_least(1))
      ->type_name("G");
  add_kv_options(*sub, *s);
  add_policy_options(*sub, s->policies, s->budgets);
  add_calibration(*sub, s->calibrate);
  sub->add_option("--chunk", s->chunk, "Prefill chunk, tokens; 0: the prompt is one pass")
      ->capture_default_str()
      ->type_name("C");
  sub->add_option("--block", s->block, "Tokens of the full cache that memory is handed out by")
      ->check(at_least(1))
      ->capture_default_str()
      ->type_name("TOKENS");
  sub->add_option("--max-batch", s->most_running, "Requests of a replica at a time")
      ->check(at_least(1))
      ->capture_default_str()
      ->type_name("N");
  sub->add_option("--prefill-speed", s->prefill_speed, "Prompt tokens a second of a replica")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("TOKENS/S");
  sub->add_option("--decode-speed", s->decode_speed, "Generated tokens a second of a request")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("TOKENS/S");
  sub->add_flag("--share-prefixes", s->share_prefixes,
                "full: blocks of equal hash_ids are held once while anybody holds them");
  sub->add_flag("--find-rate", s->find_rate,
                "Search the largest rate without preemption and with short waits");
  sub->add_option("--max-wait", s->max_wait, "p99 of the wait that --find-rate allows, seconds")
      ->capture_default_str()
      ->type_name("S");
  sub->add_option("--out", s->out, "Result as JSON, with memory over time")
      ->transform(output_file())
      ->type_name("FILE");
  sub->add_flag("--quiet", s->quiet, "No progress");
  sub->footer(R"help(
Examples:
  kvspan plan --model Llama-3.1-8B --gpu H100 --gpus 8 --rate 20 --count 20000 --prompt "lognormal(2048,0.9)" --gen "exponential(300)"
  kvspan plan --model Llama-3.1-70B --gpu H100 --gpus 8 --tp 4 --kv-dtype fp8 --requests AzureLLMInferenceTrace_conv.csv --find-rate
  kvspan plan --model Llama-3.1-8B --gpu H100 --requests mooncake_trace.jsonl --share-prefixes --policy full

It does not model the runtime's scheduling of steps, nor how speeds change with the batch: both
speeds are what you say. Exit code 6: weights and activations leave no memory.)help");
  sub->callback([s, &context] { run(*s, context); });
}

}  // namespace kvspan::cli
