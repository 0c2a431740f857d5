// SPDX-License-Identifier: Apache-2.0
// From a Hugging Face config.json to the sizes of a model. Each family is a row of
// model_families.cpp. Layers are counted by what they mix tokens with (attention, a recurrence, a
// convolution) and by what follows (a dense block, experts, nothing).
#include "sim/models/model_config.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/json_fields.h"
#include "sim/base/text.h"
#include "sim/models/config_fields.h"
#include "sim/models/gemma_counts.h"
#include "sim/models/model_families.h"
#include "sim/models/model_layers.h"
#include "sim/models/parameter_counts.h"
#include "sim/models/quantization.h"
#include "sim/models/recurrences.h"

namespace kvspan {
namespace config {
namespace {

const Family* by_architecture(const nlohmann::json& config) {
  if (!config.contains("architectures") || !config["architectures"].is_array()) return nullptr;
  for (const nlohmann::json& name : config["architectures"]) {
    if (!name.is_string()) continue;
    const Family* family = family_of_architecture(name.get_ref<const std::string&>());
    if (family != nullptr) return family;
  }
  return nullptr;
}

std::string type_of(const nlohmann::json& config) {
  return config.contains("model_type") && config["model_type"].is_string()
             ? config["model_type"].get<std::string>()
             : std::string();
}

// The part about text of a model with other parts; what it leaves out is the whole's.
nlohmann::json text_part(const nlohmann::json& config) {
  nlohmann::json text = config["text_config"];
  for (const char* key :
       {"dtype", "torch_dtype", "quantization_config", "tie_word_embeddings", "_name_or_path"}) {
    if (!text.contains(key) && config.contains(key)) text[key] = config[key];
  }
  return text;
}

// An indexer keeps a key of its own beside every latent.
void read_indexer(const Fields& c, ModelGeometry& m) {
  m.v_head_dim = c.small("index_head_dim", "width of an indexer's key", 65536);
  if (!c.has("indexer_types")) return;
  for (const nlohmann::json& type : c.at("indexer_types")) {
    if (type != "full")
      c.wrong("indexer_types", "'full' in every layer: layers that share an indexer are not sized");
  }
}

void read_heads(const Fields& c, const Family& family, ModelGeometry& m) {
  constexpr int kMostHeads = 65536;
  m.query_heads = c.small("num_attention_heads", "query heads of a layer", kMostHeads);
  if (family.is_latent()) {
    m.latent = true;
    m.kv_heads = 1;
    m.head_dim = c.small("kv_lora_rank", "width of the latent", kMostHeads) +
                 c.small("qk_rope_head_dim", "rotary width of a key", kMostHeads);
    if (family.mixing == Mixing::sparse) read_indexer(c, m);
    return;
  }
  m.kv_heads = c.small("num_key_value_heads", "KV heads of a layer", kMostHeads);
  const char* dim_key =
      c.has("head_dim") || !c.has("attention_head_dim") ? "head_dim" : "attention_head_dim";
  if (c.has(dim_key)) {
    m.head_dim = c.small(dim_key, "width of a head", kMostHeads);
  } else {  // the rule of the configuration classes
    const Count hidden = c.count("hidden_size", "width of the model; or 'head_dim'");
    if (hidden % m.query_heads != 0) {
      c.fail(
          fmt::format("'hidden_size' {} is no multiple of 'num_attention_heads' {}, and there is "
                      "no field 'head_dim'",
                      hidden, m.query_heads));
    }
    m.head_dim = static_cast<int>(hidden / m.query_heads);
  }
  if (m.query_heads % m.kv_heads != 0) {
    c.fail(
        fmt::format("'num_attention_heads' is {}, expected a multiple of 'num_key_value_heads' {}",
                    m.query_heads, m.kv_heads));
  }
  m.v_head_dim = m.head_dim;
}

// The parameters of the rotary embedding that reach furthest: those of full attention, where layers
// have their own (transformers 5).
nlohmann::json rope_of(const Fields& c) {
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const nlohmann::json* rope = c.find(key);
    if (rope == nullptr || !rope->is_object()) continue;
    const auto full = rope->find("full_attention");
    return full != rope->end() && full->is_object() ? *full : *rope;
  }
  return nlohmann::json::object();
}

// The most tokens that a model is for, as vLLM derives it: YaRN reaches factor x the length that it
// was trained on, linear and dynamic scaling factor x max_position_embeddings. Of Gemma 3 (and of
// every scaling with ranges of its own) the field already is what was reached.
void read_limit(const Fields& c, ModelGeometry& m) {
  const char* key = c.one_of({"max_position_embeddings", "model_max_length"});
  if (c.has(key)) {
    m.max_context = c.count(key, "most tokens", kMostTokens);
    m.max_context_from = key;
  }
  const Fields rope = c.part(rope_of(c));
  const std::string type = rope.text(rope.has("rope_type") ? "rope_type" : "type");
  const bool scales = type == "yarn" || type == "linear" || type == "dynamic";
  if (!scales || m.family.starts_with("gemma3") || !rope.has("factor")) return;
  const double factor = rope.real("factor", "factor of the rotary scaling");
  Count trained = m.max_context;
  if (type == "yarn" && rope.has("original_max_position_embeddings")) {
    trained = rope.count("original_max_position_embeddings", "tokens that it was trained on",
                         kMostTokens);
  }
  if (trained == 0) return;
  m.max_context = static_cast<Count>(std::llround(factor * static_cast<double>(trained)));
  m.max_context_from = fmt::format("{}: {:g} x {}", type, factor, trained);
}

nlohmann::json parse(const std::string& text, const std::string& where) {
  nlohmann::json config;
  try {
    config = nlohmann::json::parse(with_quoted_non_finite(text));
  } catch (const nlohmann::json::exception& e) {
    throw ConfigError(fmt::format("'{}' is not JSON: {}", one_line(where),
                                  shorten_middle(one_line(e.what()), 160)));
  }
  if (!config.is_object()) {
    throw ConfigError(
        fmt::format("'{}' is {}, expected a JSON object with the fields of a "
                    "config.json",
                    one_line(where), shown(config)));
  }
  return config;
}

// The nearest known type; but of another version ("gemma4") no figure of a known one is right.
std::string hint_for(const std::string& type) {
  const auto letters = [](std::string text) {
    std::erase_if(text, [](char c) { return c >= '0' && c <= '9'; });
    return text;
  };
  std::vector<std::string> versions;
  for (const std::string& known : family_names()) {
    if (known != letters(known) && letters(known) == letters(type)) versions.push_back(known);
  }
  if (versions.empty()) return nearest_hint(type, family_names());
  return fmt::format("its other versions ({}) have other sizes", fmt::join(versions, ", "));
}

const Family& family_of(const nlohmann::json& config, const std::string& type, const Fields& c) {
  const Family* family = family_of_type(type);
  if (family == nullptr) family = by_architecture(config);
  if (family != nullptr) return *family;
  if (type.empty()) {
    c.fail(fmt::format("there is no field 'model_type' that names the family; known: {}",
                       fmt::join(family_names(), ", ")));
  }
  // What linear layers hold their like is told by fields; a latent beside them would be missed.
  if (names_recurrent_layers(config) && !c.has("kv_lora_rank")) return unknown_hybrid();
  c.fail(fmt::format("model_type '{}' is not known; {}", shorten_middle(one_line(type), 40),
                     hint_for(type)));
}

Layers read_layers(const Fields& c, const Family& family, ModelGeometry& model) {
  const auto n = static_cast<std::size_t>(model.layers);
  Layers layers{std::vector(n, Mixer::attention), std::vector(n, Block::dense),
                std::vector<Count>(n, 0)};
  read_mixers(c, family, layers);
  std::vector<Count> windows;
  for (std::size_t l = 0; l < n; ++l) {
    if (layers.mixers[l] != Mixer::attention) continue;
    model.layer_ids.push_back(static_cast<int>(l));
    windows.push_back(layers.windows[l]);
  }
  if (model.layer_ids.empty()) c.fail("no layer is attention: there is no KV cache to size");
  if (std::any_of(windows.begin(), windows.end(), [](Count w) { return w > 0; }))
    model.sliding_window = windows;
  return layers;
}

// The KV cache does not depend on the weights: they are refused where they are asked for.
void read_weights(const Fields& c, const Family& family, Layers layers, ModelGeometry& model) {
  try {
    const Quantization quantization(c);
    model.weights.dtype = quantization.dtype();
    model.weights.unknown_dtype = quantization.unknown();
    read_blocks(c, family, layers);
    count_weights(c, family, layers, quantization, model, model.weights);
  } catch (const ConfigError& e) {
    model.weights.groups.clear();
    model.weights.refusal = e.what();
  }
}

// Where full layers have other KV heads than sliding ones, the model is two groups of layers.
void read_parts(const Fields& c, const Layers& layers, ModelGeometry& model) {
  std::vector<std::pair<KvShape, ModelGeometry>> parts;
  for (std::size_t i = 0; i < model.layer_ids.size(); ++i) {
    const int layer = model.layer_ids[i];
    const Count window = layers.windows[static_cast<std::size_t>(layer)];
    const KvShape shape = gemma4_shape(c, model, layer, window > 0);
    auto part = std::find_if(parts.begin(), parts.end(),
                             [&](const auto& known) { return known.first == shape; });
    if (part == parts.end()) {
      ModelGeometry same;
      same.name = model.name;
      same.layers = model.layers;
      same.query_heads = model.query_heads;
      same.kv_heads = shape.heads;
      same.head_dim = same.v_head_dim = shape.width;
      part = parts.insert(parts.end(), {shape, same});
    }
    part->second.layer_ids.push_back(layer);
    part->second.sliding_window.push_back(window);
  }
  for (auto& [shape, part] : parts) model.parts.push_back(std::move(part));
}

// transformers 5 leaves the number of layers out where it names each of them.
int count_layers(const Fields& c) {
  const nlohmann::json* words = c.find("layers_block_type");
  if (!c.has("num_hidden_layers") && words != nullptr && words->is_array() && !words->empty() &&
      words->size() <= 4096) {
    return static_cast<int>(words->size());
  }
  return c.small("num_hidden_layers", "layers", 4096);
}

ModelGeometry read(const std::string& text, const std::string& where) {
  nlohmann::json config = parse(text, where);
  ModelGeometry model;
  if (config.contains("text_config") && config["text_config"].is_object()) {
    config = text_part(config);
    model.notes.emplace_back("text part only: the weights of the other parts are not counted");
  }
  const std::string type = type_of(config);
  Fields c(config, where);
  const Family& family = family_of(config, type, c);
  model.family = type.empty() ? family.model_type : type;
  c.name_family(shorten_middle(one_line(model.family), 40));
  model.name = c.text("_name_or_path");
  model.layers = count_layers(c);
  read_heads(c, family, model);
  read_limit(c, model);
  const Layers layers = read_layers(c, family, model);
  model.state_bytes = state_bytes(c, family, layers);
  if (family.experts == Experts::gpt_oss) {
    model.notes.emplace_back("attention sinks are one learned logit a query head: they hold no KV");
  }
  if (family.windows == Windows::chunked)
    model.notes.emplace_back("chunks of attention are counted as windows of the same length");
  if (family.mixing == Mixing::gemma4) read_parts(c, layers, model);
  read_weights(c, family, layers, model);
  return model;
}

}  // namespace
}  // namespace config

ModelGeometry read_model_config(const std::string& text, const std::string& where) {
  return config::read(text, where);
}

}  // namespace kvspan
