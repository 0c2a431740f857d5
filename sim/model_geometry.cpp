// SPDX-License-Identifier: Apache-2.0
#include "sim/model_geometry.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <numeric>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/error.h"
#include "sim/ledger.h"
#include "sim/spec.h"
#include "sim/trace.h"

namespace kvspan {
namespace {

// From the config.json of each model on its public model page.
const std::vector<ModelGeometry>& list() {
  static const std::vector<ModelGeometry> models = {
      {"Llama-2-7B", 32, 32, 32, 128, 128, {}, {}},
      {"Llama-3.1-8B", 32, 32, 8, 128, 128, {}, {}},
      {"Llama-3.1-70B", 80, 64, 8, 128, 128, {}, {}},
      {"Llama-3.1-405B", 126, 128, 8, 128, 128, {}, {}},
      {"Llama-3.2-1B", 16, 32, 8, 64, 64, {}, {}},
      {"Llama-3.2-3B", 28, 24, 8, 128, 128, {}, {}},
      {"Mistral-7B-v0.3", 32, 32, 8, 128, 128, {}, {}},
      {"Qwen2.5-7B", 28, 28, 4, 128, 128, {}, {}},
      {"Qwen2.5-72B", 80, 64, 8, 128, 128, {}, {}},
      {"Qwen3-4B", 36, 32, 8, 128, 128, {}, {}},
      {"Qwen3-8B", 36, 32, 8, 128, 128, {}, {}},
      {"Qwen3-32B", 64, 64, 8, 128, 128, {}, {}},
      {"SmolLM2-135M", 30, 9, 3, 64, 64, {}, {}},
      {"TinyLlama-1.1B", 22, 32, 4, 64, 64, {}, {}},
      {"MiniMind2-Small", 8, 8, 2, 64, 64, {}, {}}};
  return models;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

ModelGeometry from_config(const std::filesystem::path& path) {
  std::ifstream in(path);
  if (!in) throw ConfigError(fmt::format("cannot read model configuration '{}'", path.string()));
  nlohmann::json config;
  try {
    config = nlohmann::json::parse(in);
  } catch (const nlohmann::json::exception& e) {
    throw ConfigError(fmt::format("'{}' is not JSON: {}", path.string(), e.what()));
  }
  const auto number = [&](const char* key) -> std::int64_t {
    if (!config.is_object() || !config.contains(key)) {
      throw ConfigError(
          fmt::format("'{}' has no field '{}', and it is not guessed", path.string(), key));
    }
    if (!config[key].is_number_integer() || config[key].get<std::int64_t>() < 1 ||
        config[key].get<std::int64_t>() > 1000000) {
      throw ConfigError(fmt::format("'{}': '{}' is {}, expected a positive integer", path.string(),
                                    key, config[key].dump()));
    }
    return config[key].get<std::int64_t>();
  };
  for (const char* unsupported :
       {"kv_lora_rank", "layer_types", "sliding_window_pattern", "ssm_cfg", "mamba_d_state"}) {
    if (config.is_object() && config.contains(unsupported)) {
      throw ConfigError(
          fmt::format("'{}' has '{}': multi-head latent, hybrid and alternating layers are not "
                      "modelled in this version",
                      path.string(), unsupported));
    }
  }
  ModelGeometry model;
  model.name = config.value("_name_or_path", path.parent_path().filename().string());
  model.layers = static_cast<int>(number("num_hidden_layers"));
  model.query_heads = static_cast<int>(number("num_attention_heads"));
  model.kv_heads = static_cast<int>(number("num_key_value_heads"));
  if (config.contains("head_dim") && !config["head_dim"].is_null()) {
    model.head_dim = static_cast<int>(number("head_dim"));
  } else {  // the rule of the Hugging Face configuration classes
    if (number("hidden_size") % model.query_heads != 0) {
      throw ConfigError(
          fmt::format("'{}': hidden_size {} is no multiple of {} heads, and there is no head_dim",
                      path.string(), number("hidden_size"), model.query_heads));
    }
    model.head_dim = static_cast<int>(number("hidden_size") / model.query_heads);
  }
  if (model.query_heads % model.kv_heads != 0) {
    throw ConfigError(fmt::format("'{}': {} query heads are no multiple of {} KV heads",
                                  path.string(), model.query_heads, model.kv_heads));
  }
  model.v_head_dim = model.head_dim;
  const bool uses_window = config.value("use_sliding_window", true);
  if (uses_window && config.contains("sliding_window") && !config["sliding_window"].is_null()) {
    model.sliding_window.assign(static_cast<std::size_t>(model.layers), number("sliding_window"));
  }
  return model;
}

ModelGeometry from_trace(const std::string& path) {
  const TraceMeta meta = Trace::open(path).meta();
  ModelGeometry model{meta.model.empty() ? path : meta.model,
                      meta.model_layers,
                      meta.query_heads,
                      meta.kv_heads,
                      meta.head_dim,
                      meta.v_head_dim,
                      meta.layer_ids,
                      meta.sliding_window};
  return model;
}

}  // namespace

std::vector<std::string> known_models() {
  std::vector<std::string> names;
  for (const ModelGeometry& m : list()) names.push_back(m.name);
  return names;
}

ModelGeometry load_model(const std::string& name_or_path) {
  const std::filesystem::path path(name_or_path);
  ModelGeometry model;
  const auto known = std::find_if(list().begin(), list().end(), [&](const ModelGeometry& m) {
    return lower(m.name) == lower(name_or_path);
  });
  if (known != list().end()) {
    model = *known;
  } else if (std::filesystem::is_directory(path)) {
    model = from_config(path / "config.json");
  } else if (name_or_path.ends_with(".safetensors") ||
             name_or_path.ends_with(".safetensors.index.json")) {
    model = from_trace(name_or_path);
  } else if (std::filesystem::exists(path) || name_or_path.ends_with(".json")) {
    model = from_config(path);
  } else {
    throw ConfigError(
        fmt::format("unknown model '{}', and no such file; {} (or a config.json, or a trace)",
                    name_or_path, nearest_hint(name_or_path, known_models())));
  }
  if (model.layer_ids.empty()) {
    model.layer_ids.resize(static_cast<std::size_t>(model.layers));
    std::iota(model.layer_ids.begin(), model.layer_ids.end(), 0);
  }
  return model;
}

Geometry geometry_of(const ModelGeometry& model, std::int64_t prompt, std::int64_t generated,
                     std::int64_t chunk, std::int64_t kv_bytes) {
  Geometry g;
  g.model_layers = model.layers;
  g.layer_ids = model.layer_ids;
  g.query_heads = model.query_heads;
  g.kv_heads = model.kv_heads;
  g.k_dim = model.head_dim;
  g.v_dim = model.v_head_dim;
  g.tokens = prompt + generated;
  g.prompt = prompt;
  g.evict_at = prompt;
  g.chunk = chunk;
  g.kv_bytes = kv_bytes;
  g.sliding_window = model.sliding_window;
  if (generated < 0)
    throw ConfigError(fmt::format("gen: found {}, expected 0 or more tokens", generated));
  (void)make_passes(g.tokens, g.prompt, g.evict_at, g.chunk);
  return g;
}

}  // namespace kvspan
