// SPDX-License-Identifier: Apache-2.0
// Hugging Face folders: config.json and safetensors.
#include <array>
#include <cmath>
#include <fstream>
#include <stdexcept>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/json_fields.h"
#include "sim/base/text.h"
#include "sim/models/model_config.h"
#include "sim/models/model_geometry.h"
#include "sim/policy/spec.h"
#include "sim/trace/safetensors.h"
#include "tracegen/model/loader.h"

namespace kvspan::tracegen::loading {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// Defaults are those of the configuration classes of transformers, for files that leave them out.
struct Family {
  std::string_view type, architecture;
  bool sliding;            // use_sliding_window says whether there are windows
  bool qkv_bias, qk_norm;  // always
  bool attention_bias;     // where the field of that name says so: on q, k, v and o
  bool mlp_bias;           // likewise
  int kv_heads;            // 0: as many as query heads
  int head_dim;            // 0: hidden_size / num_attention_heads
  std::int64_t context;
};
constexpr std::array<Family, 4> kFamilies{
    {{"llama", "LlamaForCausalLM", false, false, false, true, true, 0, 0, 2048},
     {"mistral", "MistralForCausalLM", false, false, false, false, false, 8, 0, 131072},
     {"qwen2", "Qwen2ForCausalLM", true, true, false, false, false, 32, 0, 32768},
     {"qwen3", "Qwen3ForCausalLM", true, false, true, true, false, 32, 128, 32768}}};

// What a file may say of its attention that the forward pass does not compute, and the value that
// says "no"; null says it, too.
constexpr std::array<Neutral, 11> kNeutral{{
    {"use_bidirectional_attention", 0, "attention to later tokens: a causal model"},
    {"bidirectional", 0, "attention to later tokens: a causal model"},
    {"attention_chunk_size", 0, "attention within chunks"},
    {"attn_logit_softcapping", 0, "soft cap on logits"},
    {"final_logit_softcapping", 0, "soft cap on logits"},
    {"attention_multiplier", 0, "other scale than 1 / sqrt(head_dim)"},
    {"query_pre_attn_scalar", 0, "other scale than 1 / sqrt(head_dim)"},
    {"no_rope_layers", 0, "layers without a rotary embedding"},
    {"num_kv_shared_layers", 0, "layers that read the KV of others"},
    {"kv_lora_rank", 0, "latent KV"},
    {"alibi", 0, "ALiBi"},
}};

std::string bytes_text(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size()};
}

// Typed fields of config.json; null counts as absent, as it does in Python.
class Config {
 public:
  explicit Config(const fs::path& path) : file_(path_text(path)) {
    try {
      object_ = parse_json_strict(with_quoted_non_finite(bytes_text(map_file(path))));
    } catch (const std::invalid_argument& error) {
      throw CheckpointError(file_ + " " + valid_utf8(error.what()) + "; expected a JSON object");
    }
    if (!object_.is_object())
      throw CheckpointError(file_ + " is " + shown(object_) + "; expected a JSON object");
  }
  [[nodiscard]] const std::string& file() const { return file_; }
  [[nodiscard]] json& object() { return object_; }
  [[nodiscard]] const json& object() const { return object_; }
  [[nodiscard]] const json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  [[nodiscard]] std::string text(const char* key) const {
    const json* value = find(key);
    if (value == nullptr) return {};
    if (!value->is_string()) fail(key, *value, "a text");
    return value->get<std::string>();
  }
  [[nodiscard]] bool flag(const char* key) const {
    const json* value = find(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) fail(key, *value, "true or false");
    return value->get<bool>();
  }
  // A finite number > 0.
  [[nodiscard]] double real(const char* key, std::optional<double> absent = {}) const {
    const json* value = find(key);
    if (value == nullptr && absent) return *absent;
    if (value == nullptr) fail_key(file_, key, "is missing", "a number > 0");
    const double number = value->is_number() ? value->get<double>() : 0;
    if (!(number > 0) || !std::isfinite(number)) fail(key, *value, "a number > 0");
    return number;
  }
  // An object without what is null.
  [[nodiscard]] json part(const char* key) const {
    const json* value = find(key);
    if (value == nullptr) return json::object();
    if (!value->is_object()) fail(key, *value, "an object");
    json out = json::object();
    for (const auto& [name, entry] : value->items()) {
      if (!entry.is_null()) out[name] = entry;
    }
    return out;
  }
  [[noreturn]] void fail(const char* key, const json& found, const std::string& expected) const {
    fail_key(file_, key, "is " + shown(found), expected);
  }

 private:
  static std::string shown(const json& value) {
    return in_quotes(value.dump(-1, ' ', true, json::error_handler_t::replace));
  }
  std::string file_;
  json object_;
};

// The class of the decoder without a head: "LlamaModel".
std::string bare_architecture(const Family& family) {
  constexpr std::string_view kSuffix = "ForCausalLM";
  return std::string(family.architecture.substr(0, family.architecture.size() - kSuffix.size())) +
         "Model";
}

const Family& family_of(const Config& config) {
  for (const char* key : {"text_config", "quantization_config"}) {
    if (const json* found = config.find(key)) {
      config.fail(key, *found,
                  "a text-only model with F32, F16 or BF16 weights (or a GGUF file of it)");
    }
  }
  std::vector<std::string> types;
  const std::string type = config.text("model_type");
  for (const Family& family : kFamilies) {
    types.emplace_back(family.type);
    if (type != family.type) continue;
    const json* names = config.find("architectures");
    if (names != nullptr && *names != json::array({family.architecture}) &&
        *names != json::array({bare_architecture(family)})) {
      config.fail(
          "architectures", *names,
          fmt::format("[\"{}\"] or [\"{}\"]", family.architecture, bare_architecture(family)));
    }
    return family;
  }
  fail_key(config.file(), "model_type", type.empty() ? "is missing" : "is " + in_quotes(type),
           fmt::format("{}", fmt::join(types, ", ")));
}

// rope_parameters (transformers 5), or rope_theta and rope_scaling, put into the older form: with
// rope_type, without theta.
json scaling_of(const Config& config, double* theta) {
  json scaling = config.part("rope_scaling");
  if (scaling.empty()) scaling = config.part("rope_parameters");
  const json type = scaling.value("rope_type", scaling.value("type", json("default")));
  *theta = config.real("rope_theta", 10000.0);  // the default of all these families
  // Another type is refused for its name, whatever else it holds.
  if (type.is_string() && type != "default" && type != "linear" && type != "llama3" &&
      type != "yarn") {
    return {{"rope_type", type}};
  }
  for (const auto& [key, value] : scaling.items()) {
    if (!value.is_structured()) continue;
    fail_key(
        config.file(), key,
        fmt::format("of the rotary embedding is {}", value.is_array() ? "a list" : "an object"),
        value.is_array()
            ? "none: a rotary embedding of type default, linear, llama3 or yarn"
            : "one rotary embedding for all layers, of type default, linear, llama3 or yarn");
  }
  if (const auto found = scaling.find("rope_theta"); found != scaling.end()) {
    if (!found->is_number()) config.fail("rope_theta", *found, "a number > 1");
    *theta = found->get<double>();
  }
  for (const json& factor :
       {scaling.value("partial_rotary_factor", json(1)),
        config.find("partial_rotary_factor") ? *config.find("partial_rotary_factor") : json(1)}) {
    if (factor != 1)
      config.fail("partial_rotary_factor", factor, "1: all elements of a head rotate");
  }
  scaling.erase("rope_theta");
  scaling.erase("partial_rotary_factor");
  if (type == "default") return json::object();
  scaling.erase("type");
  scaling["rope_type"] = type;
  if (type != "llama3" && type != "yarn") return scaling;
  // As the file has it: the limit that follows from the scaling is another number.
  const auto positions = static_cast<std::int64_t>(config.real("max_position_embeddings"));
  const char* original = "original_max_position_embeddings";
  if (const json* outer = config.find(original)) {
    scaling[original] = *outer;
  } else if (!scaling.contains(original)) {
    scaling[original] = positions;
  }
  const json& context = scaling.value(original, json());
  if (type == "yarn" && !scaling.contains("factor") && context.is_number() && context > 0)
    scaling["factor"] = static_cast<double>(positions) / context.get<double>();
  return scaling;
}

// "license: X" in the front matter of a README.md; empty where there is none.
std::string licence_in(const fs::path& readme) {
  std::ifstream file(readme);
  std::string line;
  for (int n = 0; n < 100 && std::getline(file, line); ++n) {
    if (n == 0 ? line != "---" : line == "---") break;
    constexpr std::string_view kKey = "license:";
    if (!line.starts_with(kKey)) continue;
    const std::size_t begin = line.find_first_not_of(' ', kKey.size());
    return begin == std::string::npos ? "" : one_line(line.substr(begin, 200));
  }
  return {};
}

void refuse_other_attention(const Config& config) {
  // As transformers reads it: whatever is not true, null too, is no.
  if (const auto causal = config.object().find("is_causal");
      causal != config.object().end() && *causal != true) {
    config.fail("is_causal", *causal, "true: rows that read no later tokens");
  }
  for (const Neutral& neutral : kNeutral) {
    const json* found = config.find(neutral.key);
    if (found != nullptr && *found != neutral.none && *found != false && *found != json::array())
      config.fail(neutral.key, *found, fmt::format("no {}", neutral.what));
  }
}

void put_defaults(const Family& family, json& object) {
  const auto put = [&](const char* key, const json& value) {
    if (!object.contains(key)) object[key] = value;
  };
  put("rms_norm_eps", 1e-6);
  put("max_position_embeddings", family.context);
  put("sliding_window", 4096);
  put("max_window_layers", 28);
  if (family.head_dim > 0) put("head_dim", family.head_dim);
  if (family.kv_heads > 0) put("num_key_value_heads", family.kv_heads);
  const auto heads = object.find("num_attention_heads");
  if (heads == object.end()) return;
  if (json& kv_heads = object["num_key_value_heads"]; kv_heads.is_null()) kv_heads = *heads;
}

// What the modelling code of the family does not look at must not count. Source: transformers
// 5.24; a Mistral with layer_types is its Ministral, whose layers have windows one by one.
void drop_unread(const Config& config, const Family& family, json& object) {
  const bool windows =
      family.sliding ? config.flag("use_sliding_window") : family.type == "mistral";
  if (windows) return;
  for (const char* key : {"layer_types", "sliding_window", "max_window_layers"}) object.erase(key);
}

ModelSpec read_spec(Config& config, const Family& family, const fs::path& folder) {
  refuse_other_attention(config);
  json& object = config.object();
  put_defaults(family, object);
  drop_unread(config, family, object);
  if (const json* types = config.find("layer_types"); types != nullptr && types->is_array()) {
    for (const json& type : *types) {
      if (type != "full_attention" && type != "sliding_attention")
        config.fail("layer_types", type, "full_attention and sliding_attention only");
    }
  }
  const ModelGeometry geometry = read_model_config(object.dump(), config.file());
  if (!geometry.weights.refusal.empty()) throw CheckpointError(geometry.weights.refusal);
  const std::string activation = config.text("hidden_act");
  if (!activation.empty() && activation != "silu")
    fail_key(config.file(), "hidden_act", "is " + in_quotes(activation), "'silu'");

  ModelSpec spec;
  spec.architecture = family.type;
  spec.name = path_text(fs::weakly_canonical(folder).filename());
  spec.licence = licence_in(folder / "README.md");
  spec.layers = geometry.layers;
  spec.hidden = static_cast<int>(geometry.weights.hidden);
  spec.intermediate = object.at("intermediate_size").get<int>();  // checked with the weights' sizes
  spec.query_heads = geometry.query_heads;
  spec.kv_heads = geometry.kv_heads;
  spec.head_dim = geometry.head_dim;
  spec.vocabulary = geometry.weights.vocabulary;
  spec.context = geometry.max_context;
  spec.norm_eps = config.real("rms_norm_eps");
  spec.sliding_window = geometry.sliding_window;
  spec.sliding_window.resize(static_cast<std::size_t>(spec.layers));
  spec.tied = config.flag("tie_word_embeddings");
  check_head_dim(spec, config.file());
  double theta = 0;
  const json scaling = scaling_of(config, &theta);
  set_rope(spec, theta, scaling, config.file());
  return spec;
}

WeightType weight_type_of(Dtype dtype) {
  return dtype == Dtype::f16    ? WeightType::f16
         : dtype == Dtype::bf16 ? WeightType::bf16
                                : WeightType::f32;
}

fs::path weights_in(const fs::path& folder) {
  for (const char* name : {"model.safetensors", "model.safetensors.index.json"}) {
    if (fs::exists(folder / name)) return folder / name;
  }
  const bool pickled = fs::exists(folder / "pytorch_model.bin") ||
                       fs::exists(folder / "pytorch_model.bin.index.json");
  throw CheckpointError(
      fmt::format("{}: no weights{}; expected model.safetensors, or model.safetensors.index.json "
                  "and its shards",
                  path_text(folder), pickled ? " but pytorch_model.bin, which is not read" : ""));
}

}  // namespace

Model open_folder(const fs::path& folder) {
  if (!fs::exists(folder / "config.json")) {
    throw CheckpointError(fmt::format(
        "{}: no config.json; expected a folder with config.json and safetensors, or a GGUF file",
        path_text(folder)));
  }
  if (fs::exists(folder / "adapter_config.json")) {
    throw CheckpointError(
        fmt::format("{}: adapter_config.json is there; expected a model whose adapter is merged "
                    "into its weights",
                    path_text(folder)));
  }
  Config config(folder / "config.json");
  const Family& family = family_of(config);
  Model model;
  model.spec = read_spec(config, family, folder);

  const fs::path weights = weights_in(folder);
  CheckpointTensors opened = open_checkpoint_tensors(weights);
  model.files = std::move(opened.files);
  model.files.insert(model.files.begin(), folder / "config.json");
  model.owners = std::move(opened.owners);
  std::map<std::string, Stored> tensors;
  for (auto& [name, dtype] : opened.other_dtypes) tensors[name] = {{}, std::move(dtype), {}, {}};
  for (auto& [name, view] : opened.tensors) {
    const bool real =
        view.dtype == Dtype::f32 || view.dtype == Dtype::f16 || view.dtype == Dtype::bf16;
    tensors[name] = {real ? std::optional(weight_type_of(view.dtype)) : std::nullopt,
                     std::string(dtype_name(view.dtype)), std::move(view.shape), view.bytes};
  }
  // A checkpoint of the bare decoder has no prefix.
  const auto first_layer = tensors.lower_bound("layers.");
  const bool bare = first_layer != tensors.end() && first_layer->first.starts_with("layers.");
  const std::string prefix = bare ? "" : "model.";
  const Names names{.embedding = prefix + "embed_tokens.weight",
                    .head = "lm_head.weight",
                    .final_norm = prefix + "norm.weight",
                    .layer = prefix + "layers.",
                    .q = "self_attn.q_proj",
                    .k = "self_attn.k_proj",
                    .v = "self_attn.v_proj",
                    .o = "self_attn.o_proj",
                    .gate = "mlp.gate_proj",
                    .up = "mlp.up_proj",
                    .down = "mlp.down_proj",
                    .q_norm = "self_attn.q_norm",
                    .k_norm = "self_attn.k_norm",
                    .attention_norm = "input_layernorm",
                    .mlp_norm = "post_attention_layernorm"};
  const auto when = [](bool has) { return has ? Presence::required : Presence::absent; };
  const bool attention_bias = family.attention_bias && config.flag("attention_bias");
  const Extras extras{.qkv_bias = when(family.qkv_bias || attention_bias),
                      .o_bias = when(attention_bias),
                      .mlp_bias = when(family.mlp_bias && config.flag("mlp_bias")),
                      .qk_norm = when(family.qk_norm)};
  Loader loader(path_text(weights), std::move(tensors));
  if (!model.spec.tied && !loader.has(names.head)) {
    loader.fail(names.head, "is missing",
                bare ? "a model with a head, which nll and generation need, or "
                       "\"tie_word_embeddings\": true in config.json: the embedding is the head"
                     : "it, or \"tie_word_embeddings\": true in config.json, which says that the "
                       "head is the embedding");
  }
  load(model, extras, names, loader);
  return model;
}

}  // namespace kvspan::tracegen::loading
