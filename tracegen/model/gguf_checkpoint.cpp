// SPDX-License-Identifier: Apache-2.0
// GGUF files.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string_view>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/base/text.h"
#include "sim/trace/tensor.h"
#include "tracegen/model/gguf.h"
#include "tracegen/model/loader.h"

namespace kvspan::tracegen::loading {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

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
    const Gguf::Value* value = file_.find(key(name));
    if (value == nullptr) return;
    if (value->is_array) fail(name, "is an array", fmt::format("no {}", what));
    const bool is_flag = value->type == Gguf::Type::boolean;
    const double found = is_flag ? (*file_.flag(key(name)) ? 1 : 0) : *file_.real(key(name));
    if (found != none) {
      fail(name, is_flag ? fmt::format("is {}", found != 0) : fmt::format("is {}", found),
           fmt::format("no {}", what));
    }
  }
  // Keys of attention and rotation say how a row reads others: one that is not known here cannot be
  // passed over.
  void refuse_unknown(std::span<const std::string_view> known) const {
    for (const auto& [name, value] : file_.metadata()) {
      for (const char* room : {"attention.", "rope."}) {
        if (!name.starts_with(key(room))) continue;
        const std::string_view rest = std::string_view(name).substr(architecture_.size() + 1);
        if (std::find(known.begin(), known.end(), rest) == known.end()) {
          file_.fail(name, "is there",
                     "none: this forward pass does not compute what it may stand for");
        }
      }
    }
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

// What a key may say that the forward pass does not compute, and the value that says "no".
constexpr std::array<Neutral, 18> kNeutral{{
    {"expert_count", 0, "experts: a dense model"},
    {"attention.causal", 1, "attention to later tokens: a causal model"},
    {"attention.sliding_window_pattern", 0, "pattern: one window for all layers"},
    {"attention.clamp_kqv", 0, "clamp on q, k and v"},
    {"attention.max_alibi_bias", 0, "ALiBi"},
    {"attention.temperature_length", 0, "temperature that grows with the position"},
    {"attention.temperature_scale", 0, "temperature that grows with the position"},
    {"attention.shared_kv_layers", 0, "layers that read the KV of others"},
    {"attn_logit_softcapping", 0, "soft cap on logits"},
    {"final_logit_softcapping", 0, "soft cap on logits"},
    {"logit_scale", 1, "scale of the logits"},
    {"residual_scale", 1, "scale of the residuals"},
    {"embedding_scale", 1, "scale of the embedding"},
    {"use_parallel_residual", 0, "attention and MLP side by side"},
    {"swin_norm", 0, "norms behind the layers"},
    {"rescale_every_n_layers", 0, "rescaling between layers"},
    {"full_attention_interval", 0, "layers of another kind"},
    {"nextn_predict_layers", 0, "layers that predict tokens further on"},
}};
// Those that read_spec() looks at; kNeutral has more.
constexpr std::array<std::string_view, 21> kAttentionKeys{
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.scale",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
};

void refuse_other_models(const Gguf& file, const GgufKeys& keys) {
  const std::string type = valid_utf8(file.text("general.type").value_or("model"));
  if (type != "model") file.fail("general.type", "is " + in_quotes(type), "'model'");
  for (const Neutral& neutral : kNeutral) keys.refuse(neutral.key, neutral.none, neutral.what);
}

void refuse_unknown_attention(const GgufKeys& keys) {
  std::vector<std::string_view> known(kAttentionKeys.begin(), kAttentionKeys.end());
  for (const Neutral& neutral : kNeutral) known.emplace_back(neutral.key);
  keys.refuse_unknown(known);
}

ModelSpec read_spec(const Gguf& file) {
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
    return one_line(file.text(key).value_or("").substr(0, 200));
  };
  spec.name = text("general.name");
  if (spec.name.empty()) spec.name = path_text(file.files().front().stem());
  spec.licence = text("general.license");

  constexpr int kMostLayers = 4096;
  constexpr int kMostHeads = 65536;
  constexpr int kMostWidth = 1 << 24;
  constexpr int kMostTokens = std::numeric_limits<int>::max();
  const GgufKeys keys(file, spec.architecture);
  refuse_other_models(file, keys);
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
  const double scale = spec.score_scale();
  if (const double other = keys.real("attention.scale", scale); std::abs(other / scale - 1) > 1e-5)
    keys.fail("attention.scale", fmt::format("is {}", other),
              fmt::format("1 / sqrt({}), the size of a head", spec.head_dim));
  spec.sliding_window.assign(static_cast<std::size_t>(spec.layers),
                             keys.count("attention.sliding_window", 0, 0, kMostTokens));
  const double theta = keys.real("rope.freq_base", 10000.0);
  set_rope(spec, theta, scaling_of(file, keys, spec), file.name());
  refuse_unknown_attention(keys);
  return spec;
}

// A row of the embedding for every token, as llama.cpp wants it.
void check_vocabulary(const Gguf& file, std::int64_t rows) {
  const char* key = "tokenizer.ggml.tokens";
  const Gguf::Value* tokens = file.find(key);
  if (tokens == nullptr || rows == 0 || static_cast<std::int64_t>(tokens->count) == rows) return;
  file.fail(key, fmt::format("has {} tokens", tokens->count),
            fmt::format("{}, one for each row of token_embd.weight", rows));
}

}  // namespace

Model open_gguf(const fs::path& path) {
  const auto file = std::make_shared<const Gguf>(Gguf::open(path));
  Model model;
  model.spec = read_spec(*file);
  model.files = file->files();
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
  const Extras extras{
      .qkv_bias = Presence::optional,
      .o_bias = Presence::optional,
      .mlp_bias = Presence::optional,
      .qk_norm = model.spec.architecture == "qwen3" ? Presence::required : Presence::absent};
  Loader loader(file->name(), std::move(tensors));
  model.spec.tied = !loader.has(names.head);
  model.spec.vocabulary = loader.rows(names.embedding);
  check_vocabulary(*file, model.spec.vocabulary);
  loader.drop("rope_freqs.weight");
  load(model, extras, names, loader, llama);
  if (const std::string* left = loader.left()) {
    loader.fail(*left, "has no place in the architecture '" + model.spec.architecture + "'",
                "only those of its layers, embedding, head and norms");
  }
  return model;
}

}  // namespace kvspan::tracegen::loading
