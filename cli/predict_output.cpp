// SPDX-License-Identifier: Apache-2.0
#include "cli/predict_output.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "sim/base/text.h"
#include "sim/report/json.h"

namespace kvspan::cli {
namespace {

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
  nlohmann::json parts = nlohmann::json::array();
  for (const ModelGeometry& part : model.parts) {
    parts.push_back({{"layer_ids", part.layer_ids},
                     {"kv_heads", part.kv_heads},
                     {"head_dim", part.head_dim},
                     {"v_head_dim", part.v_head_dim}});
  }
  return {{"name", model.name},
          {"parts", parts},
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

std::string heads_text(const ModelGeometry& model) {
  if (model.latent) {
    return fmt::format(
        "one latent of {} elements a token for all heads (MLA){}", model.head_dim,
        model.v_head_dim > 0 ? fmt::format(", and an indexer's key of {}", model.v_head_dim) : "");
  }
  std::string out;
  for (const ModelGeometry& part : parts_of(model)) {
    out += fmt::format("{}{} KV head{} of {}", out.empty() ? "" : ", ", part.kv_heads,
                       part.kv_heads == 1 ? "" : "s", part.head_dim);
    if (!model.parts.empty()) out += fmt::format(" in {} layers", part.layer_ids.size());
  }
  return out;
}

// What the table is of; one line each.
void print_model(const PredictSettings& s, const ModelGeometry& model) {
  const auto holding = static_cast<int>(model.layer_ids.size());
  const bool all = holding == model.layers || model.family.empty();  // a trace may hold a part
  fmt::print("{}: {} layers{}, {} query heads, {}; {} prompt + {} generated tokens, chunk {}\n",
             one_line(model.name), all ? holding : model.layers,
             all ? std::string() : fmt::format(" ({} hold KV)", holding), model.query_heads,
             heads_text(model), s.prompt, s.generated,
             s.chunk == 0 ? std::string("whole prompt") : std::to_string(s.chunk));
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
    fmt::print("{} tokens are more than the model's {} ({})\n", s.prompt + s.generated,
               model.max_context, model.max_context_from);
  }
}

// What stands before a figure that is not exact: of memory, and of what fits into it.
std::string sign(Basis basis) {
  return basis == Basis::bound ? "<= " : basis == Basis::scaled ? "~ " : "";
}
std::string sign_of_room(Basis basis) {
  return basis == Basis::bound ? ">= " : basis == Basis::scaled ? "~ " : "";
}

// The legend of the signs that a table has.
void print_signs(const std::vector<Basis>& bases, const std::string& calibrated_on) {
  const auto any = [&](Basis basis) {
    return std::find(bases.begin(), bases.end(), basis) != bases.end();
  };
  if (any(Basis::bound)) {
    fmt::print("  <=: how many entries stay depends on the text; an upper bound{}\n",
               calibrated_on.empty() ? " (--calibrate RESULT.json takes measured shares)" : "");
  }
  if (any(Basis::scaled))
    fmt::print("  ~: upper bounds, times shares measured on {}\n", calibrated_on);
}

// Where KV heads lie when GPUs share every layer.
std::string sharing(const ModelGeometry& model, std::int64_t tp) {
  const std::int64_t shards = kv_shards(model, tp);
  if (model.latent) return "the latent cache is replicated on every GPU";
  if (shards < tp) {
    return fmt::format("{} KV heads on {} GPUs: each head on {} of them", model.kv_heads, tp,
                       tp / shards);
  }
  return fmt::format("{} of {} KV heads on each GPU, taken as equally full", model.kv_heads / tp,
                     model.kv_heads);
}

void print_memory(const PredictSettings& s, const ModelGeometry& model, const FixedMemory& memory) {
  const Deployment& d = s.deployment;
  const std::string each = d.tp > 1 ? " on each GPU" : "";
  fmt::print("\nwhat fits into {}{} of {}, {:g} % of it used{}: {}{}\n",
             d.tp == 1 ? std::string("one GPU") : fmt::format("{} GPUs", d.tp),
             s.gpu.empty() ? "" : fmt::format(" ({})", one_line(s.gpu)), human_bytes(d.gpu_memory),
             100 * d.utilization,
             d.reserve > 0 ? fmt::format(", {} reserved", human_bytes(d.reserve)) : "",
             human_bytes(memory.usable), each);
  fmt::print("{}", align({{"  weights", human_bytes(memory.weights)},
                          {"  activations", human_bytes(memory.activations)},
                          {"  left for KV", memory.left > 0 ? human_bytes(memory.left) : "none"}}));
  fmt::print("  {} parameters in {}; activations are an estimate for one pass\n",
             grouped(memory.parameters), memory.weight_dtype);
  if (d.tp > 1) fmt::print("  {}\n", sharing(model, d.tp));
  if (memory.left > 0) return;
  const bool alone = memory.weights >= memory.usable;
  fmt::print("\n{} do not fit: {}{} needed, {} usable; {}\n",
             alone ? "the weights alone" : "weights and activations",
             human_bytes(alone ? memory.weights : memory.weights + memory.activations), each,
             human_bytes(memory.usable), memory.advice);
}

std::string fits_word(const Capacity& f) {
  if (f.beyond_model) return "no *";
  if (f.fits) return "yes";
  return f.basis == Basis::bound ? "unsure" : "no";
}

void print_capacities(const PredictSettings& s, const ModelGeometry& model,
                      const PredictAnswer& answer) {
  const Deployment& d = s.deployment;
  std::vector<std::vector<std::string>> rows = {
      {"policy", "request peak", "in decode", fmt::format("total at {}", d.batch), "fits",
       fmt::format("longest context at {}", d.batch),
       fmt::format("largest batch at {}", s.prompt + s.generated)}};
  bool limited = false;
  std::vector<Basis> bases;
  for (std::size_t i = 0; i < answer.capacities.size(); ++i) {
    const Capacity& f = answer.capacities[i];
    const std::string most = sign(f.basis);
    const std::string least = sign_of_room(f.basis);
    bases.push_back(f.basis);
    limited |= f.limited_by_model || f.beyond_model;
    rows.push_back(
        {answer.labels[i], most + human_bytes(f.request), most + human_bytes(f.waiting),
         most + human_bytes(f.total), fits_word(f),
         f.limited_by_model      ? fmt::format("* {}", f.longest_prompt + s.generated)
         : f.longest_prompt == 0 ? std::string(f.basis == Basis::bound ? "unsure" : "none")
                                 : fmt::format("{}{}", least, f.longest_prompt + s.generated),
         f.beyond_model ? std::string("none *") : fmt::format("{}{}", least, f.largest_batch)});
  }
  fmt::print("\n{}", align(rows));
  if (limited) {
    fmt::print("  * {}\n", model.max_context > 0
                               ? fmt::format("the model's limit, {} tokens ({})", model.max_context,
                                             model.max_context_from)
                               : "as far as was searched; the configuration states no limit");
  }
  print_signs(bases, answer.calibrated_on);
  fmt::print(
      "  request: KV, the policy's overhead{}{}; of a batch one request prefills while the "
      "others decode\n",
      model.state_bytes > 0 ? " and recurrent state" : "", d.tp > 1 ? " on each GPU" : "");
  if (d.reserve == 0)
    fmt::print("  nothing is reserved for the runtime itself (contexts, graphs): --reserve 2GiB\n");
  fmt::print(
      "  in vLLM's words, for the full cache: GPU KV cache size: {} tokens; maximum concurrency "
      "for "
      "{} tokens per request: {:.2f}x\n",
      grouped(answer.vllm->kv_tokens), grouped(s.prompt + s.generated), answer.vllm->concurrency);
}

nlohmann::json memory_json(const PredictSettings& s, const ModelGeometry& model,
                           const FixedMemory& memory) {
  const Deployment& d = s.deployment;
  return {{"memory", d.gpu_memory},
          {"utilization", d.utilization},
          {"reserve", d.reserve},
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
  return {{"basis", text_of(f.basis)},
          {"kv", f.kv},
          {"overhead", f.overhead},
          {"state", f.state},
          {"request", f.request},
          {"waiting", f.waiting},
          {"total", f.total},
          {"fits", f.fits},
          {"beyond_model", f.beyond_model},
          {"longest_prompt", f.longest_prompt},
          {"longest_context", f.longest_prompt == 0 ? 0 : f.longest_prompt + s.generated},
          {"limited_by_model", f.limited_by_model},
          {"largest_batch", f.largest_batch}};
}

void print_predictions(const PredictAnswer& answer) {
  std::vector<std::vector<std::string>> rows = {
      {"policy", "KV footprint", "peak KV", "peak memory", "in prefill", "in decode"}};
  std::vector<Basis> bases;
  for (std::size_t i = 0; i < answer.predictions.size(); ++i) {
    const Prediction& p = answer.predictions[i];
    const std::string most = sign(p.basis);
    bases.push_back(p.basis);
    rows.push_back(
        {answer.labels[i], most + fmt::format("{:.2f} %", 100 * p.footprint),
         most + fmt::format("{:.2f} %", 100 * p.peak_kv), most + human_bytes(p.peak_bytes.total),
         most + human_bytes(p.peak_bytes.prefill), most + human_bytes(p.peak_bytes.decode)});
  }
  fmt::print("\n{}", align(rows));
  print_signs(bases, answer.calibrated_on);
  for (const Prediction& p : answer.predictions) {
    for (const std::string& note : p.notes) fmt::print("  {}: {}\n", p.spec, note);
  }
}

nlohmann::json runs_json(const PredictSettings& s, const PredictAnswer& answer) {
  nlohmann::json runs = nlohmann::json::array();
  for (std::size_t i = 0; i < answer.predictions.size(); ++i) {
    const Prediction& p = answer.predictions[i];
    nlohmann::json layouts;
    for (const auto& [name, peak] : p.layouts) layouts[name] = peak_json(peak);
    runs.push_back({{"policy", p.spec},
                    {"basis", text_of(p.basis)},
                    {"exact", p.basis == Basis::closed_form || p.basis == Basis::measured},
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

}  // namespace

void print_answer(const PredictSettings& s, const ModelGeometry& model,
                  const PredictAnswer& answer) {
  print_model(s, model);
  print_predictions(answer);
  if (answer.memory) print_memory(s, model, *answer.memory);
  if (!answer.capacities.empty()) print_capacities(s, model, answer);
}

nlohmann::json answer_json(const PredictSettings& s, const std::vector<std::string>& command,
                           const ModelGeometry& model, const PredictAnswer& answer) {
  nlohmann::json json = {
      {"schema_version", 1},
      {"kvspan", program_json()},
      {"command", command},
      {"model", model_json(model)},
      {"prompt", s.prompt},
      {"generated", s.generated},
      {"chunk", s.chunk},
      {"accounting", {{"kv_bytes", s.kv_bytes}, {"prefill", s.prefill}, {"layout", s.layout}}},
      {"runs", runs_json(s, answer)}};
  if (!answer.calibrated_on.empty()) json["calibrated_on"] = answer.calibrated_on;
  if (answer.memory) json["gpu"] = memory_json(s, model, *answer.memory);
  if (answer.vllm) {
    json["gpu"]["kv_cache_tokens"] = answer.vllm->kv_tokens;
    json["gpu"]["max_concurrency"] = answer.vllm->concurrency;
  }
  return json;
}

}  // namespace kvspan::cli
