// SPDX-License-Identifier: Apache-2.0
#include "tracegen/model/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <stdexcept>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/json_fields.h"
#include "sim/base/text.h"
#include "sim/models/model_config.h"
#include "sim/policy/spec.h"
#include "sim/trace/safetensors.h"
#include "tracegen/model/gguf.h"

namespace kvspan::tracegen {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr std::string_view kReadableTypes =
    "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K";

struct Model {
  ModelSpec spec;
  std::vector<LayerWeights> layers;
  WeightMatrix embedding, head;
  std::vector<float> final_norm;
  std::vector<fs::path> files;
  std::int64_t bytes = 0;
  std::vector<std::shared_ptr<const void>> owners;
};

// ---- What both kinds of file have in common -----------------------------------------------------

struct Stored {
  std::optional<WeightType> type;  // none: one that we do not read
  std::string type_name;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

// What the tensors of a model are called.
struct Names {
  std::string embedding, head, final_norm, layer;  // the number of a layer follows
  const char *q, *k, *v, *o, *gate, *up, *down;    // of a layer, without .weight and .bias
  const char *q_norm, *k_norm, *attention_norm, *mlp_norm;
};

enum class Presence : std::uint8_t { required, absent, optional };

// Which vectors a model has beside its matrices and norms.
struct Extras {
  Presence qkv_bias = Presence::absent;
  Presence o_bias = Presence::absent;
  Presence mlp_bias = Presence::absent;
  Presence qk_norm = Presence::absent;
};

// Takes tensors out of the file's list, checking each against the shape that the model needs.
class Loader {
 public:
  Loader(std::string where, std::map<std::string, Stored> tensors)
      : where_(std::move(where)), tensors_(std::move(tensors)) {}

  [[nodiscard]] bool has(const std::string& name) const { return tensors_.contains(name); }
  // Outermost extent, 0 if there is no such tensor.
  [[nodiscard]] std::int64_t rows(const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() || found->second.shape.empty() ? 0 : found->second.shape[0];
  }

  WeightMatrix matrix(const std::string& name, std::int64_t rows, std::int64_t columns,
                      int rope_heads = 0) {
    const Stored& stored = take(name, {rows, columns});
    return {name, *stored.type, rows, columns, stored.bytes, rope_heads};
  }

  // fp32 values; rows of heads put into Hugging Face's order, as for a matrix. Empty: not there.
  std::vector<float> vector(const std::string& name, std::int64_t size, Presence presence,
                            int rope_heads = 0) {
    if (presence == Presence::absent && has(name)) {
      fail(name, "is there", "none: the configuration says that the model has no such vector");
    }
    if (presence == Presence::absent || (presence == Presence::optional && !has(name))) return {};
    const Stored& stored = take(name, {size});
    std::vector<float> stored_order(static_cast<std::size_t>(size));
    widen_weights(*stored.type, stored.bytes.data(), size, stored_order.data());
    if (rope_heads == 0) return stored_order;
    WeightMatrix order;
    order.rows = size;
    order.rope_heads = rope_heads;
    std::vector<float> out;
    for (std::int64_t r = 0; r < size; ++r)
      out.push_back(stored_order[static_cast<std::size_t>(order.stored_row(r))]);
    return out;
  }

  // A tensor that is neither taken nor dropped.
  [[nodiscard]] const std::string* left() const {
    return tensors_.empty() ? nullptr : &tensors_.begin()->first;
  }
  void drop(const std::string& name) { tensors_.erase(name); }

  // Bytes of all that was taken, and the types by falling share: "Q4_1, Q6_K and F32".
  [[nodiscard]] std::int64_t bytes() const {
    std::int64_t sum = 0;
    for (const auto& [name, bytes] : bytes_of_type_) sum += bytes;
    return sum;
  }
  [[nodiscard]] std::string types() const {
    std::vector<std::pair<std::int64_t, std::string_view>> order;
    for (const auto& [name, bytes] : bytes_of_type_) order.emplace_back(-bytes, name);
    std::sort(order.begin(), order.end());
    std::string text;
    for (std::size_t i = 0; i < order.size(); ++i) {
      if (i > 0) text += i + 1 == order.size() ? " and " : ", ";
      text += order[i].second;
    }
    return text;
  }

  [[noreturn]] void fail(const std::string& tensor, const std::string& found,
                         const std::string& expected) const {
    throw CheckpointError(fmt::format("{}: tensor {} {}; expected {}", where_,
                                      in_quotes(valid_utf8(tensor)), found, expected));
  }

 private:
  // The reference is valid until the next call.
  const Stored& take(const std::string& name, const std::vector<std::int64_t>& shape) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      fail(name, "is missing", fmt::format("one of shape {}", shape_text(shape)));
    }
    taken_ = std::move(found->second);
    tensors_.erase(found);
    if (!taken_.type) {
      fail(name, fmt::format("has type {}", one_line(taken_.type_name)),
           std::string(kReadableTypes));
    }
    if (taken_.shape != shape) {
      fail(name, fmt::format("has shape {}", shape_text(taken_.shape)), shape_text(shape));
    }
    bytes_of_type_[weight_type_name(*taken_.type)] +=
        static_cast<std::int64_t>(taken_.bytes.size());
    return taken_;
  }

  std::string where_;
  std::map<std::string, Stored> tensors_;
  Stored taken_;
  std::map<std::string_view, std::int64_t> bytes_of_type_;
};

LayerWeights load_layer(Loader& tensors, const Names& names, const Extras& extras,
                        const ModelSpec& spec, int layer, bool interleaved) {
  const std::string prefix = names.layer + std::to_string(layer) + ".";
  const std::int64_t hidden = spec.hidden;
  const std::int64_t inner = spec.intermediate;
  const std::int64_t queries = std::int64_t{spec.query_heads} * spec.head_dim;
  const std::int64_t keys = std::int64_t{spec.kv_heads} * spec.head_dim;
  const int q_heads = interleaved ? spec.query_heads : 0;
  const int k_heads = interleaved ? spec.kv_heads : 0;
  const auto matrix = [&](const char* name, std::int64_t rows, std::int64_t columns,
                          int rope_heads = 0) {
    return tensors.matrix(prefix + name + ".weight", rows, columns, rope_heads);
  };
  const auto bias = [&](const char* name, std::int64_t size, Presence presence,
                        int rope_heads = 0) {
    return tensors.vector(prefix + name + ".bias", size, presence, rope_heads);
  };
  const auto norm = [&](const char* name, std::int64_t size, Presence presence) {
    return tensors.vector(prefix + name + ".weight", size, presence);
  };
  LayerWeights w;
  w.q = matrix(names.q, queries, hidden, q_heads);
  w.k = matrix(names.k, keys, hidden, k_heads);
  w.v = matrix(names.v, keys, hidden);
  w.o = matrix(names.o, hidden, queries);
  w.gate = matrix(names.gate, inner, hidden);
  w.up = matrix(names.up, inner, hidden);
  w.down = matrix(names.down, hidden, inner);
  w.q_bias = bias(names.q, queries, extras.qkv_bias, q_heads);
  w.k_bias = bias(names.k, keys, extras.qkv_bias, k_heads);
  w.v_bias = bias(names.v, keys, extras.qkv_bias);
  w.o_bias = bias(names.o, hidden, extras.o_bias);
  w.gate_bias = bias(names.gate, inner, extras.mlp_bias);
  w.up_bias = bias(names.up, inner, extras.mlp_bias);
  w.down_bias = bias(names.down, hidden, extras.mlp_bias);
  w.q_norm = norm(names.q_norm, spec.head_dim, extras.qk_norm);
  w.k_norm = norm(names.k_norm, spec.head_dim, extras.qk_norm);
  w.attention_norm = norm(names.attention_norm, hidden, Presence::required);
  w.mlp_norm = norm(names.mlp_norm, hidden, Presence::required);
  return w;
}

// `model.spec` is complete but for `weights`; the files and their owners are there.
void load(Model& model, const Extras& extras, const Names& names, Loader& tensors,
          bool interleaved = false) {
  ModelSpec& spec = model.spec;
  model.embedding = tensors.matrix(names.embedding, spec.vocabulary, spec.hidden);
  if (spec.tied) {
    tensors.drop(names.head);  // some files repeat it
    model.head = model.embedding;
  } else {
    model.head = tensors.matrix(names.head, spec.vocabulary, spec.hidden);
  }
  model.final_norm = tensors.vector(names.final_norm, spec.hidden, Presence::required);
  for (int l = 0; l < spec.layers; ++l)
    model.layers.push_back(load_layer(tensors, names, extras, spec, l, interleaved));
  model.bytes = tensors.bytes();
  spec.weights = tensors.types();
}

[[noreturn]] void fail_key(const std::string& file, std::string_view key, const std::string& found,
                           const std::string& expected) {
  throw CheckpointError(fmt::format("{}: '{}' {}; expected {}", file, key, found, expected));
}

// ---- Rotary embedding ---------------------------------------------------------------------------

// The factor on cos and sin. Source: Hugging Face transformers, modeling_rope_utils (YaRN).
double attention_factor(const json& scaling, const std::string& file) {
  const auto number = [&](const char* key) {
    const auto found = scaling.find(key);
    if (found == scaling.end()) return 0.0;
    const double value = found->is_number() ? found->get<double>() : -1;
    if (!(value >= 0) || !std::isfinite(value))
      fail_key(file, key, "is " + in_quotes(found->dump()), "a number >= 0");
    return value;
  };
  if (number("attention_factor") > 0) return number("attention_factor");
  const auto magnitude = [factor = number("factor")](double weight) {
    return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1;
  };
  const double over = number("mscale");
  const double under = number("mscale_all_dim");
  return over > 0 && under > 0 ? magnitude(over) / magnitude(under) : magnitude(1);
}

// `scaling` is the rope_scaling object of a Hugging Face config, empty for none.
void set_rope(ModelSpec& spec, double theta, const json& scaling, const std::string& file) {
  Metadata metadata{{"rope_theta", fmt::format("{}", theta)},
                    {"rope_dim", std::to_string(spec.head_dim)},
                    {"rope_layout", "half"}};
  if (!scaling.empty()) {
    spec.rope_scaling = scaling.dump(-1, ' ', true, json::error_handler_t::replace);
    metadata["rope_scaling"] = spec.rope_scaling;
  }
  spec.rope = read_rope(metadata, spec.head_dim, file).value();
  if (scaling.value("rope_type", json("default")) == "yarn")
    spec.rope_attention_factor = attention_factor(scaling, file);
}

void check_head_dim(const ModelSpec& spec, const std::string& file) {
  if (spec.head_dim % 2 != 0) {
    throw CheckpointError(
        fmt::format("{}: heads of {} elements; expected an even number", file, spec.head_dim));
  }
}

// ---- Hugging Face folders -----------------------------------------------------------------------

struct Family {
  std::string_view type, architecture;
  bool sliding;            // layer_types and use_sliding_window are read
  bool qkv_bias, qk_norm;  // always
  bool attention_bias;     // where the field of that name says so: on q, k, v and o
  bool mlp_bias;           // likewise
};
constexpr std::array<Family, 4> kFamilies{
    {{"llama", "LlamaForCausalLM", false, false, false, true, true},
     {"mistral", "MistralForCausalLM", false, false, false, false, false},
     {"qwen2", "Qwen2ForCausalLM", true, true, false, false, false},
     {"qwen3", "Qwen3ForCausalLM", true, false, true, true, false}}};

std::string bytes_text(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size()};
}

// Typed fields of config.json; null counts as absent, as it does in Python.
class Config {
 public:
  explicit Config(const fs::path& path) : file_(one_line(valid_utf8(path.string()))) {
    try {
      object_ = parse_json_strict(bytes_text(map_file(path)));
    } catch (const std::invalid_argument& error) {
      throw CheckpointError(file_ + " " + valid_utf8(error.what()) + "; expected a JSON object");
    }
    if (!object_.is_object())
      throw CheckpointError(file_ + " is " + shown(object_) + "; expected a JSON object");
  }
  [[nodiscard]] const std::string& file() const { return file_; }
  [[nodiscard]] json& object() { return object_; }
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
    if (names != nullptr && *names != json::array({family.architecture}))
      config.fail("architectures", *names, fmt::format("[\"{}\"]", family.architecture));
    return family;
  }
  fail_key(config.file(), "model_type", type.empty() ? "is missing" : "is " + in_quotes(type),
           fmt::format("{}", fmt::join(types, ", ")));
}

// rope_parameters (transformers 5), or rope_theta and rope_scaling, put into the older form: with
// rope_type, without theta.
json scaling_of(const Config& config, const ModelSpec& spec, double* theta) {
  json scaling = config.part("rope_scaling");
  if (scaling.empty()) scaling = config.part("rope_parameters");
  for (const auto& [key, value] : scaling.items()) {
    if (value.is_structured())
      fail_key(config.file(), key, "of the rotary embedding is an object or a list",
               "one rotary embedding for all layers, of type default, linear, llama3 or yarn");
  }
  *theta = config.real("rope_theta", 10000.0);  // the default of all these families
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
  const json type = scaling.value("rope_type", scaling.value("type", json("default")));
  if (type == "default") return json::object();
  scaling.erase("type");
  scaling["rope_type"] = type;
  if (type != "llama3" && type != "yarn") return scaling;
  const char* original = "original_max_position_embeddings";
  if (const json* outer = config.find(original)) {
    scaling[original] = *outer;
  } else if (!scaling.contains(original) && spec.context > 0) {
    scaling[original] = spec.context;
  }
  const json& context = scaling.value(original, json());
  if (type == "yarn" && !scaling.contains("factor") && context.is_number() && context > 0)
    scaling["factor"] = static_cast<double>(spec.context) / context.get<double>();
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
    return begin == std::string::npos ? "" : one_line(valid_utf8(line.substr(begin, 200)));
  }
  return {};
}

ModelSpec read_spec(Config& config, const Family& family, const fs::path& folder) {
  json& object = config.object();
  // What the modelling code of the family does not look at must not count.
  if (!family.sliding) object.erase("layer_types");
  if (family.sliding && !config.flag("use_sliding_window")) {
    object.erase("layer_types");
    object.erase("sliding_window");
  }
  if (family.type == "llama" && config.find("num_key_value_heads") == nullptr &&
      config.find("num_attention_heads") != nullptr) {
    object["num_key_value_heads"] = object["num_attention_heads"];
  }
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
  spec.name = one_line(valid_utf8(fs::weakly_canonical(folder).filename().string()));
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
  const json scaling = scaling_of(config, spec, &theta);
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
                  one_line(valid_utf8(folder.string())),
                  pickled ? " but pytorch_model.bin, which is not read" : ""));
}

Model open_folder(const fs::path& folder) {
  if (!fs::exists(folder / "config.json")) {
    throw CheckpointError(fmt::format(
        "{}: no config.json; expected a folder with config.json and safetensors, or a GGUF file",
        one_line(valid_utf8(folder.string()))));
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
  const std::string prefix =
      tensors.contains("model.embed_tokens.weight") || !tensors.contains("embed_tokens.weight")
          ? "model."
          : "";
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
  Loader loader(one_line(valid_utf8(weights.string())), std::move(tensors));
  if (!model.spec.tied && !loader.has(names.head)) {
    loader.fail(names.head, "is missing",
                "it, or \"tie_word_embeddings\": true in config.json, which says that the head is "
                "the embedding");
  }
  load(model, extras, names, loader);
  return model;
}

// ---- GGUF files ---------------------------------------------------------------------------------

// Keys of one architecture: "llama.block_count" and so on.
class GgufKeys {
 public:
  GgufKeys(const Gguf& file, std::string architecture)
      : file_(file), architecture_(std::move(architecture)) {}
  [[nodiscard]] std::string key(const char* name) const { return architecture_ + "." + name; }
  [[nodiscard]] bool has(const char* name) const { return file_.find(key(name)) != nullptr; }
  [[nodiscard]] int count(const char* name, std::optional<int> absent, int low, int high) const {
    const auto found = file_.integer(key(name));
    if (!found && absent) return *absent;
    const std::string expected = fmt::format("an integer in [{}, {}]", low, high);
    if (!found) fail(name, "is missing", expected);
    if (*found < low || *found > high) fail(name, fmt::format("is {}", *found), expected);
    return static_cast<int>(*found);
  }
  [[nodiscard]] double real(const char* name, std::optional<double> absent) const {
    const auto found = file_.real(key(name));
    if (!found && absent) return *absent;
    if (!found) fail(name, "is missing", "a number > 0");
    if (!(*found > 0) || !std::isfinite(*found))
      fail(name, fmt::format("is {}", *found), "a number > 0");
    return *found;
  }
  // What the forward pass has no part for must have the value that means "none".
  void refuse(const char* name, double none, const std::string& what) const {
    if (!has(name)) return;
    if (file_.find(key(name))->is_array || file_.real(key(name)) != none)
      fail(name, "is there", fmt::format("no {}", what));
  }
  [[noreturn]] void fail(const char* name, const std::string& found,
                         const std::string& expected) const {
    file_.fail(key(name), found, expected);
  }

 private:
  const Gguf& file_;
  std::string architecture_;
};

// In the form of a Hugging Face config. Source: llama.cpp, for what the keys mean: YaRN always
// multiplies cos and sin by 0.1 ln(factor) + 1, and by attn_factor.
json scaling_of(const Gguf& file, const GgufKeys& keys, const ModelSpec& spec) {
  const double factor = keys.real("rope.scaling.factor", keys.real("rope.scale_linear", 1.0));
  const std::string type = valid_utf8(
      file.text(keys.key("rope.scaling.type")).value_or(factor == 1 ? "none" : "linear"));
  if (const auto found = file.tensors().find("rope_freqs.weight"); found != file.tensors().end()) {
    const Gguf::Tensor& factors = found->second;
    if (type != "none" || factors.type != WeightType::f32 ||
        factors.shape != std::vector<std::int64_t>{spec.head_dim / 2}) {
      throw CheckpointError(fmt::format(
          "{}: tensor 'rope_freqs.weight' is {} {} beside rope.scaling.type {}; expected F32 [{}] "
          "beside none",
          file.name(), factors.type_name, shape_text(factors.shape), in_quotes(type),
          spec.head_dim / 2));
    }
    std::vector<float> values(static_cast<std::size_t>(spec.head_dim / 2));
    widen_weights(WeightType::f32, factors.bytes.data(), spec.head_dim / 2, values.data());
    return {{"rope_type", "factors"}, {"factors", values}};
  }
  if (type == "none" || factor == 1) return json::object();
  if (type == "linear") return {{"rope_type", "linear"}, {"factor", factor}};
  if (type != "yarn")
    keys.fail("rope.scaling.type", "is " + in_quotes(type), "none, linear or yarn");
  keys.refuse("rope.scaling.yarn_ext_factor", 1, "other extrapolation than YaRN's");
  keys.refuse("rope.scaling.yarn_attn_factor", 1, "second attention factor");
  keys.refuse("rope.scaling.yarn_log_multiplier", 0, "multiplier of YaRN's attention factor");
  return {{"rope_type", "yarn"},
          {"factor", factor},
          {"original_max_position_embeddings",
           keys.count("rope.scaling.original_context_length", static_cast<int>(spec.context), 1,
                      std::numeric_limits<int>::max())},
          {"beta_fast", keys.real("rope.scaling.yarn_beta_fast", 32)},
          {"beta_slow", keys.real("rope.scaling.yarn_beta_slow", 1)},
          {"attention_factor",
           keys.real("rope.scaling.attn_factor", 1) * std::max(1.0, 0.1 * std::log(factor) + 1)}};
}

ModelSpec read_spec(const Gguf& file, const fs::path& path) {
  ModelSpec spec;
  spec.architecture = file.text("general.architecture").value_or("");
  if (spec.architecture != "llama" && spec.architecture != "qwen2" &&
      spec.architecture != "qwen3") {
    file.fail(
        "general.architecture",
        spec.architecture.empty() ? "is missing" : "is " + in_quotes(valid_utf8(spec.architecture)),
        "llama, qwen2 or qwen3");
  }
  const auto text = [&](const char* key) {
    return one_line(valid_utf8(file.text(key).value_or("").substr(0, 200)));
  };
  spec.name = text("general.name");
  if (spec.name.empty()) spec.name = one_line(valid_utf8(path.stem().string()));
  spec.licence = text("general.license");

  constexpr int kMostLayers = 4096;
  constexpr int kMostHeads = 65536;
  constexpr int kMostWidth = 1 << 24;
  constexpr int kMostTokens = std::numeric_limits<int>::max();
  const GgufKeys keys(file, spec.architecture);
  keys.refuse("expert_count", 0, "experts: a dense model");
  keys.refuse("attention.sliding_window_pattern", 0, "pattern: one window for all layers");
  spec.layers = keys.count("block_count", {}, 1, kMostLayers);
  spec.hidden = keys.count("embedding_length", {}, 1, kMostWidth);
  spec.intermediate = keys.count("feed_forward_length", {}, 1, kMostWidth);
  spec.query_heads = keys.count("attention.head_count", {}, 1, kMostHeads);
  spec.kv_heads = keys.count("attention.head_count_kv", spec.query_heads, 1, spec.query_heads);
  if (spec.query_heads % spec.kv_heads != 0) {
    keys.fail("attention.head_count_kv", fmt::format("is {}", spec.kv_heads),
              fmt::format("a divisor of the {} query heads", spec.query_heads));
  }
  if (!keys.has("attention.key_length") && spec.hidden % spec.query_heads != 0) {
    keys.fail(
        "attention.head_count", fmt::format("is {}", spec.query_heads),
        fmt::format("a divisor of embedding_length {}, or attention.key_length", spec.hidden));
  }
  spec.head_dim = keys.count("attention.key_length", spec.hidden / spec.query_heads, 1, kMostHeads);
  check_head_dim(spec, file.name());
  for (const char* same : {"attention.value_length", "rope.dimension_count"}) {
    if (keys.count(same, spec.head_dim, 1, kMostHeads) != spec.head_dim)
      keys.fail(same, "differs", fmt::format("the size of a head, {}", spec.head_dim));
  }
  spec.context = keys.count("context_length", 0, 1, kMostTokens);
  spec.norm_eps = keys.real("attention.layer_norm_rms_epsilon", {});
  spec.sliding_window.assign(static_cast<std::size_t>(spec.layers),
                             keys.count("attention.sliding_window", 0, 0, kMostTokens));
  const double theta = keys.real("rope.freq_base", 10000.0);
  set_rope(spec, theta, scaling_of(file, keys, spec), file.name());
  return spec;
}

Model open_gguf(const fs::path& path) {
  const auto file = std::make_shared<const Gguf>(Gguf::open(path));
  Model model;
  model.spec = read_spec(*file, path);
  model.files = {path};
  model.owners = {file};
  std::map<std::string, Stored> tensors;
  for (const auto& [name, tensor] : file->tensors())
    tensors[name] = {tensor.type, std::string(tensor.type_name), tensor.shape, tensor.bytes};
  const Names names{.embedding = "token_embd.weight",
                    .head = "output.weight",
                    .final_norm = "output_norm.weight",
                    .layer = "blk.",
                    .q = "attn_q",
                    .k = "attn_k",
                    .v = "attn_v",
                    .o = "attn_output",
                    .gate = "ffn_gate",
                    .up = "ffn_up",
                    .down = "ffn_down",
                    .q_norm = "attn_q_norm",
                    .k_norm = "attn_k_norm",
                    .attention_norm = "attn_norm",
                    .mlp_norm = "ffn_norm"};
  // The metadata do not say which biases there are.
  const bool llama = model.spec.architecture == "llama";
  const bool qwen2 = model.spec.architecture == "qwen2";
  const Extras extras{
      .qkv_bias = qwen2 ? Presence::required : Presence::optional,
      .o_bias = Presence::optional,
      .mlp_bias = Presence::optional,
      .qk_norm = model.spec.architecture == "qwen3" ? Presence::required : Presence::absent};
  Loader loader(file->name(), std::move(tensors));
  model.spec.tied = !loader.has(names.head);
  model.spec.vocabulary = loader.rows(names.embedding);
  loader.drop("rope_freqs.weight");
  load(model, extras, names, loader, llama);
  if (const std::string* left = loader.left()) {
    loader.fail(*left, "has no place in the architecture '" + model.spec.architecture + "'",
                "only those of its layers, embedding, head and norms");
  }
  return model;
}

Model open_model(const fs::path& path) {
  if (fs::is_directory(path)) return open_folder(path);
  if (!fs::exists(path)) {
    throw CheckpointError(
        fmt::format("{} does not exist; expected a folder with config.json and safetensors, or a "
                    "GGUF file",
                    one_line(valid_utf8(path.string()))));
  }
  return open_gguf(path);
}

}  // namespace

struct Checkpoint::Impl : Model {};

Checkpoint Checkpoint::open(const fs::path& path) {
  try {
    Checkpoint checkpoint;
    checkpoint.impl_ = std::make_shared<const Impl>(Impl{open_model(path)});
    return checkpoint;
  } catch (const TraceError& error) {
    throw CheckpointError(error.what());
  } catch (const ConfigError& error) {
    throw CheckpointError(error.what());
  } catch (const fs::filesystem_error& error) {
    throw CheckpointError(fmt::format("{} cannot be opened ({})",
                                      one_line(valid_utf8(path.string())), error.code().message()));
  }
}

const ModelSpec& Checkpoint::spec() const { return impl_->spec; }
const LayerWeights& Checkpoint::layer(int layer) const {
  return impl_->layers.at(static_cast<std::size_t>(layer));
}
const WeightMatrix& Checkpoint::embedding() const { return impl_->embedding; }
const WeightMatrix& Checkpoint::head() const { return impl_->head; }
const std::vector<float>& Checkpoint::final_norm() const { return impl_->final_norm; }
const std::vector<fs::path>& Checkpoint::files() const { return impl_->files; }
std::int64_t Checkpoint::bytes() const { return impl_->bytes; }

void Checkpoint::release(int layer) const {
  const LayerWeights& w = this->layer(layer);
  for (const WeightMatrix* m : {&w.q, &w.k, &w.v, &w.o, &w.gate, &w.up, &w.down})
    release_pages(m->bytes);
}

}  // namespace kvspan::tracegen
