// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <optional>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/validators.h"
#include "sim/base/build_info.h"
#include "sim/base/error.h"
#include "sim/base/text.h"
#include "sim/models/model_geometry.h"
#include "sim/predict/analytic.h"
#include "sim/predict/calibration.h"
#include "sim/predict/capacity.h"
#include "sim/report/json.h"
#include "sim/run/run.h"
#include "sim/trace/safetensors.h"

namespace kvspan::cli {
namespace {

struct PredictSettings {
  std::string model;
  std::int64_t prompt = 0, generated = 0, chunk = 0, kv_bytes = 2;
  std::vector<std::string> policies, budgets;
  std::string prefill = "whole", layout = "ideal", out, kv_dtype, calibrate;
  std::string gpu_memory;  // empty: what fits is not asked
  Deployment deployment;
};

nlohmann::json model_json(const ModelGeometry& model) {
  nlohmann::json weights;
  if (model.weights.refusal.empty()) {
    nlohmann::json groups = nlohmann::json::array();
    for (const WeightGroup& g : model.weights.groups)
      groups.push_back({{"name", g.name}, {"parameters", g.parameters}});
    weights = {{"parameters", model.weights.parameters()},
               {"dtype", model.weights.dtype},
               {"groups", groups}};
  }
  return {{"name", model.name},
          {"family", model.family},
          {"layers", model.layer_ids.size()},
          {"model_layers", model.layers},
          {"layer_ids", model.layer_ids},
          {"query_heads", model.query_heads},
          {"kv_heads", model.kv_heads},
          {"head_dim", model.head_dim},
          {"v_head_dim", model.v_head_dim},
          {"latent", model.latent},
          {"max_context",
           model.max_context == 0 ? nlohmann::json() : nlohmann::json(model.max_context)},
          {"sliding_window", model.sliding_window},
          {"state_bytes", model.state_bytes},
          {"weights", weights},
          {"notes", model.notes}};
}

// Digits in threes.
std::string grouped(std::int64_t value) {
  std::string out = std::to_string(value);
  for (std::size_t at = out.size(); at > 3; at -= 3) out.insert(at - 3, ",");
  return out;
}

// What the table is of; one line each.
void print_model(const PredictSettings& s, const ModelGeometry& model) {
  const auto holding = static_cast<int>(model.layer_ids.size());
  const bool all = holding == model.layers || model.family.empty();  // a trace may hold a part
  fmt::print(
      "{}: {} layers{}, {} query heads, {}; {} prompt + {} generated tokens, chunk {}\n",
      one_line(model.name), all ? holding : model.layers,
      all ? std::string() : fmt::format(" ({} hold KV)", holding), model.query_heads,
      model.latent
          ? fmt::format("one latent of {} elements a token for all heads (MLA)", model.head_dim)
          : fmt::format("{} KV head{} of {}", model.kv_heads, model.kv_heads == 1 ? "" : "s",
                        model.head_dim),
      s.prompt, s.generated, s.chunk == 0 ? std::string("whole prompt") : std::to_string(s.chunk));
  fmt::print("closed forms, no trace; KV in {} an element, prefill {}, layout {}\n",
             s.kv_bytes == 1 ? std::string("1 byte") : fmt::format("{} bytes", s.kv_bytes),
             s.prefill, s.layout);
  const std::string& dtype = model.weights.dtype;
  fmt::print("weights and activations not included{}\n",
             model.weights.refusal.empty()
                 ? fmt::format(": {} parameters{}", grouped(model.weights.parameters()),
                               dtype.empty()
                                   ? ""
                                   : fmt::format(", {} in {}",
                                                 human_bytes(weight_bytes(model, dtype, 1)), dtype))
                 : "");
  const std::string windows = describe_windows(model);
  if (!windows.empty()) {
    fmt::print(
        "sliding window: {};\n"
        "  a runtime that frees what has left it holds full(model_window=evict)\n",
        windows);
  }
  if (model.state_bytes > 0) {
    fmt::print("recurrent layers: {} of state a request, whatever its length, not in the table\n",
               human_bytes(model.state_bytes));
  }
  for (const std::string& note : model.notes) fmt::print("{}\n", note);
  if (model.max_context > 0 && s.prompt + s.generated > model.max_context) {
    fmt::print("{} tokens are more than the model's {} (max_position_embeddings)\n",
               s.prompt + s.generated, model.max_context);
  }
}

void print_capacities(const PredictSettings& s, const ModelGeometry& model,
                      const FixedMemory& memory, const std::vector<std::string>& labels,
                      const std::vector<Capacity>& capacities) {
  const Deployment& d = s.deployment;
  const std::string each = d.tp > 1 ? " on each GPU" : "";
  fmt::print("\nwhat fits into {} of {}, {:g} % of it used: {}{}\n",
             d.tp == 1 ? std::string("one GPU") : fmt::format("{} GPUs", d.tp),
             human_bytes(d.gpu_memory), 100 * d.utilization, human_bytes(memory.usable), each);
  fmt::print("{}", align({{"  weights", human_bytes(memory.weights)},
                          {"  activations", human_bytes(memory.activations)},
                          {"  left for KV", memory.left > 0 ? human_bytes(memory.left) : "none"}}));
  fmt::print("  {} parameters in {}; activations are an estimate for one pass\n",
             grouped(memory.parameters), memory.weight_dtype);
  if (d.tp > 1) {
    const std::int64_t shards = kv_shards(model, d.tp);
    fmt::print("  {}\n", model.latent ? "the latent cache is replicated on every GPU"
                         : shards < d.tp
                             ? fmt::format("{} KV heads on {} GPUs: each head on {} of them",
                                           model.kv_heads, d.tp, d.tp / shards)
                             : fmt::format("{} of {} KV heads on each GPU, taken as equally full",
                                           model.kv_heads / d.tp, model.kv_heads));
  }
  if (memory.left <= 0) {
    fmt::print("\n{} do not fit: {}{} needed, {} usable; {}\n",
               memory.weights >= memory.usable ? "the weights alone" : "weights and activations",
               human_bytes(memory.weights >= memory.usable ? memory.weights
                                                           : memory.weights + memory.activations),
               each, human_bytes(memory.usable), memory.advice);
    return;
  }
  std::vector<std::vector<std::string>> rows = {
      {"policy", "request peak", "in decode", fmt::format("total at {}", d.batch), "fits",
       fmt::format("longest context at {}", d.batch),
       fmt::format("largest batch at {}", s.prompt + s.generated)}};
  bool limited = false;
  for (std::size_t i = 0; i < capacities.size(); ++i) {
    const Capacity& f = capacities[i];
    limited |= f.limited_by_model;
    rows.push_back({labels[i], human_bytes(f.request), human_bytes(f.waiting), human_bytes(f.total),
                    f.fits ? "yes" : "no",
                    f.longest_prompt == 0 ? "none"
                                          : fmt::format("{}{}", f.limited_by_model ? "* " : "",
                                                        f.longest_prompt + s.generated),
                    std::to_string(f.largest_batch)});
  }
  fmt::print("\n{}", align(rows));
  if (limited) {
    fmt::print("  * {}\n",
               model.max_context > 0
                   ? fmt::format("the model's limit, {} tokens (max_position_embeddings)",
                                 model.max_context)
                   : "as far as was searched; the configuration has no max_position_embeddings");
  }
  fmt::print(
      "  request: KV, the policy's overhead{}{}; of a batch one request prefills while the "
      "others decode\n",
      model.state_bytes > 0 ? " and recurrent state" : "", each);
}

nlohmann::json memory_json(const PredictSettings& s, const ModelGeometry& model,
                           const FixedMemory& memory) {
  const Deployment& d = s.deployment;
  return {{"memory", d.gpu_memory},
          {"utilization", d.utilization},
          {"usable", memory.usable},
          {"tp", d.tp},
          {"kv_shards", kv_shards(model, d.tp)},
          {"batch", d.batch},
          {"weight_dtype", memory.weight_dtype},
          {"weights", memory.weights},
          {"all_weights", memory.all_weights},
          {"activations", memory.activations},
          {"left", memory.left},
          {"advice", memory.advice.empty() ? nlohmann::json() : nlohmann::json(memory.advice)}};
}

nlohmann::json capacity_json(const PredictSettings& s, const Capacity& f) {
  return {{"kv", f.kv},
          {"overhead", f.overhead},
          {"state", f.state},
          {"request", f.request},
          {"waiting", f.waiting},
          {"total", f.total},
          {"fits", f.fits},
          {"longest_prompt", f.longest_prompt},
          {"longest_context", f.longest_prompt == 0 ? 0 : f.longest_prompt + s.generated},
          {"limited_by_model", f.limited_by_model},
          {"largest_batch", f.largest_batch}};
}

// Whether a runtime that knows the model's windows could hold less.
bool slides_within(const ModelGeometry& model, std::int64_t tokens) {
  return std::any_of(model.sliding_window.begin(), model.sliding_window.end(),
                     [&](std::int64_t window) { return window > 0 && window < tokens; });
}

// All that the command computes: one prediction a policy, and what fits if that was asked.
struct Answer {
  std::vector<std::string> labels;
  std::vector<Prediction> predictions;
  std::optional<FixedMemory> memory;
  std::vector<Capacity> capacities;  // empty: not asked, or no memory is left
};

Answer answer(const PredictSettings& s, const ModelGeometry& model, const Geometry& geometry) {
  const Workload workload{s.prompt, s.generated, s.chunk};
  Accounting accounting;
  accounting.kv_bytes = s.kv_bytes;
  accounting.layerwise = s.prefill == "layerwise";
  accounting.layout = s.layout;
  Answer out;
  if (!s.gpu_memory.empty()) out.memory = fixed_memory(model, workload, s.deployment);
  const bool everything = s.policies.empty();
  std::vector<RecipeSpec> specs =
      expand_policies(everything ? std::vector<std::string>{"all"} : s.policies, s.budgets);
  if (everything && slides_within(model, s.prompt + s.generated))
    specs.insert(specs.begin() + 1, parse_spec("full(model_window=evict)"));
  const auto measured =
      s.calibrate.empty() ? std::map<std::string, Occupancies>() : read_occupancies(s.calibrate);
  for (const RecipeSpec& spec : specs) {
    Policy policy = make_policy(spec, geometry);
    const auto found = measured.find(policy.spec);
    if (!policy.closed_form && found != measured.end())
      policy = calibrated(std::move(policy), found->second, s.calibrate);
    out.labels.push_back(to_text(spec));
    out.predictions.push_back(predict(policy, geometry, accounting));
    if (model.latent) out.predictions.back().layouts.erase("query_head");
    if (out.memory && out.memory->left > 0)
      out.capacities.push_back(capacity_of(spec, model, workload, accounting, s.deployment));
  }
  return out;
}

void print_predictions(const PredictSettings& s, const Answer& answer) {
  std::vector<std::vector<std::string>> rows = {
      {"policy", "KV footprint", "peak KV", "peak memory", "in prefill", "in decode"}};
  bool bounds = false;
  for (std::size_t i = 0; i < answer.predictions.size(); ++i) {
    const Prediction& p = answer.predictions[i];
    const std::string most = p.exact ? "" : "<= ";
    bounds |= !p.exact;
    rows.push_back(
        {answer.labels[i], most + fmt::format("{:.2f} %", 100 * p.footprint),
         most + fmt::format("{:.2f} %", 100 * p.peak_kv), most + human_bytes(p.peak_bytes.total),
         most + human_bytes(p.peak_bytes.prefill), most + human_bytes(p.peak_bytes.decode)});
  }
  fmt::print("\n{}", align(rows));
  if (bounds) {
    fmt::print("  <=: how many entries stay depends on the text; an upper bound{}\n",
               s.calibrate.empty() ? " (--calibrate RESULT.json takes measured shares)" : "");
  }
  for (const Prediction& p : answer.predictions) {
    for (const std::string& note : p.notes) fmt::print("  {}: {}\n", p.spec, note);
  }
}

nlohmann::json runs_json(const PredictSettings& s, const Answer& answer) {
  nlohmann::json runs = nlohmann::json::array();
  for (std::size_t i = 0; i < answer.predictions.size(); ++i) {
    const Prediction& p = answer.predictions[i];
    nlohmann::json layouts;
    for (const auto& [name, peak] : p.layouts) layouts[name] = peak_json(peak);
    runs.push_back({{"policy", p.spec},
                    {"exact", p.exact},
                    {"footprint", p.footprint},
                    {"peak_kv", p.peak_kv},
                    {"entry_rows", p.entry_rows},
                    {"full_entry_rows", p.full_entry_rows},
                    {"peak_bytes", peak_json(p.peak_bytes)},
                    {"byte_rows", p.byte_rows ? nlohmann::json(*p.byte_rows) : nlohmann::json()},
                    {"layouts", layouts},
                    {"notes", p.notes}});
    if (!answer.memory) continue;
    runs.back()["fit"] =
        i < answer.capacities.size() ? capacity_json(s, answer.capacities[i]) : nlohmann::json();
  }
  return runs;
}

nlohmann::json answer_json(const PredictSettings& s, const Context& context,
                           const ModelGeometry& model, const Answer& answer) {
  const BuildInfo build = build_info();
  nlohmann::json json = {
      {"schema_version", 1},
      {"kvspan", {{"version", build.version}, {"git", build.git}, {"build", build.build}}},
      {"command", context.command},
      {"model", model_json(model)},
      {"prompt", s.prompt},
      {"generated", s.generated},
      {"chunk", s.chunk},
      {"accounting", {{"kv_bytes", s.kv_bytes}, {"prefill", s.prefill}, {"layout", s.layout}}},
      {"runs", runs_json(s, answer)}};
  if (answer.memory) json["gpu"] = memory_json(s, model, *answer.memory);
  return json;
}

void run(const PredictSettings& given, const Context& context) {
  PredictSettings s = given;
  if (!s.kv_dtype.empty()) s.kv_bytes = kv_dtype_bytes(s.kv_dtype);
  const ModelGeometry model = load_model(s.model);
  if (model.latent && s.layout == "query_head") {
    throw ConfigError(
        fmt::format("layout 'query_head': found a latent cache ('{}'), which no query "
                    "head has a copy of; expected another layout, such as 'ideal'",
                    model.name));
  }
  const Geometry geometry = geometry_of(model, s.prompt, s.generated, s.chunk, s.kv_bytes);
  if (!s.gpu_memory.empty()) s.deployment.gpu_memory = parse_bytes(s.gpu_memory, "gpu-memory");
  const Answer found = answer(s, model, geometry);
  print_model(s, model);
  print_predictions(s, found);
  if (found.memory) print_capacities(s, model, *found.memory, found.labels, found.capacities);
  if (!s.out.empty())
    write_file_atomically(s.out, answer_json(s, context, model, found).dump(1) + "\n");
}

}  // namespace

void add_predict(CLI::App& app, const Context& context) {
  auto s = std::make_shared<PredictSettings>();
  CLI::App* sub =
      app.add_subcommand("predict", "Footprint, peak and bytes from closed forms, without a trace");
  sub->add_option("--model", s->model, "A known model, a config.json or its folder, or a trace")
      ->required()
      ->type_name("NAME|FILE");
  sub->add_option("--prompt", s->prompt, "Prompt tokens, n")
      ->required()
      ->check(at_least(1))
      ->type_name("N");
  sub->add_option("--gen", s->generated, "Generated tokens, m")->check(at_least(0))->type_name("M");
  sub->add_option("--chunk", s->chunk, "Prefill chunk, tokens; 0: the prompt is one pass")
      ->type_name("C");
  sub->add_option("--policy", s->policies, "Policy specification or @file.json; may be repeated")
      ->type_name("SPEC")
      ->allow_extra_args(false);
  sub->add_option("--budget", s->budgets, "Budgets for policies that have one")
      ->type_name("B[,B]")
      ->delimiter(',')
      ->allow_extra_args(false);
  sub->add_option("--calibrate", s->calibrate,
                  "Result of kvspan run: measured shares for policies that depend on content")
      ->type_name("RESULT.json");
  CLI::Option* kv_bytes = sub->add_option("--kv-bytes", s->kv_bytes, "Bytes of one stored element")
                              ->check(CLI::Range(1, 16))
                              ->type_name("B");
  sub->add_option("--kv-dtype", s->kv_dtype, "The same by the name of a format (fp16, fp8, ...)")
      ->excludes(kv_bytes)
      ->type_name("NAME");
  sub->add_option("--prefill", s->prefill, "When a runtime compresses")
      ->check(CLI::IsMember({"whole", "layerwise"}))
      ->type_name("whole|layerwise");
  sub->add_option("--layout", s->layout, "Storage layout that bytes are counted in")
      ->type_name("NAME");
  sub->add_option("--out", s->out, "Result as JSON")->type_name("FILE");
  CLI::Option* memory =
      sub->add_option("--gpu-memory", s->gpu_memory, "What fits into a GPU of this much memory?")
          ->type_name("SIZE");
  sub->add_option("--gpu-utilization", s->deployment.utilization, "Share of it that may be used")
      ->needs(memory)
      ->capture_default_str()
      ->type_name("SHARE");
  sub->add_option("--tp", s->deployment.tp, "GPUs that share every layer (tensor parallelism)")
      ->needs(memory)
      ->check(at_least(1))
      ->type_name("K");
  sub->add_option("--batch", s->deployment.batch, "Requests at a time")
      ->needs(memory)
      ->check(CLI::Range(1, 1000000))
      ->type_name("B");
  sub->add_option("--weight-dtype", s->deployment.weight_dtype,
                  "Format of the weights; default: the checkpoint's")
      ->needs(memory)
      ->type_name("NAME");
  sub->footer(R"help(
Examples:
  kvspan predict --model Llama-3.1-8B --prompt 131072 --gen 128 --chunk 32768
  kvspan predict --model config.json --prompt 8192 --gen 1024 --policy "snapkv(budget={512,2048})" --prefill layerwise
  kvspan predict --model Llama-3.1-8B --prompt 131072 --gen 128 --chunk 32768 --policy "chunked(snapkv(budget=30%,window=64))"
  kvspan predict --model Llama-3.1-70B --prompt 32768 --gen 1024 --chunk 8192 --gpu-memory 80GiB --tp 4 --batch 8 --kv-dtype fp8)help");
  sub->callback([s, &context] { run(*s, context); });
}

}  // namespace kvspan::cli
