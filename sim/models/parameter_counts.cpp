// SPDX-License-Identifier: Apache-2.0
#include "sim/models/parameter_counts.h"

#include <algorithm>
#include <array>
#include <initializer_list>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/text.h"

namespace kvspan::config {
namespace {

using Split = WeightGroup::Split;
using Kind = WeightGroup::Kind;

// ---- Recurrent states and mixers without KV -----------------------------------------------------

// All of them are a projection in, a short convolution, and a projection out; `state` is what a
// request keeps between tokens.
struct Recurrence {
  Count projected = 0;            // columns of the projection in
  Count convolved = 0, taps = 1;  // channels and taps of the convolution
  bool convolution_bias = false;
  bool projection_bias = false;
  Count out = 0;    // rows of the projection out
  Count small = 0;  // decays, norms and the like
  Count state = 0;  // elements of the recurrence
};

Recurrence mamba2(const Fields& c, const Family& family) {
  const bool nemotron = family.mixing == Mixing::nemotron;
  const char* heads_key = nemotron ? "mamba_num_heads" : "mamba_n_heads";
  const char* width_key = nemotron ? "mamba_head_dim" : "mamba_d_head";
  const Count heads = c.width(heads_key, "heads of a Mamba layer");
  Count width = 0;
  if (c.text(c.has(width_key) && c.at(width_key).is_string() ? width_key : "") == "auto") {
    width = c.count("mamba_expand", "inner width / hidden_size", 1000) *
            c.count("hidden_size", "width of the model") / heads;
  } else {
    width = c.width(width_key, "width of a Mamba head");
  }
  const Count inner = heads * width;
  const Count groups = c.width(nemotron ? "n_groups" : "mamba_n_groups", "groups of B and C");
  const Count state = c.width(nemotron ? "ssm_state_size" : "mamba_d_state", "states a channel");
  Recurrence r;
  r.convolved = inner + 2 * groups * state;
  r.projected = inner + r.convolved + heads;
  r.taps = c.width(nemotron ? "conv_kernel" : "mamba_d_conv", "taps of the convolution");
  r.convolution_bias = c.flag(nemotron ? "use_conv_bias" : "mamba_conv_bias", true);
  r.projection_bias = c.flag(nemotron ? "use_bias" : "mamba_proj_bias", false);
  r.out = inner;
  r.small = 3 * heads + inner;  // dt_bias, A, D; the norm
  r.state = inner * state;
  return r;
}

Recurrence recurrence_of(const Fields& c, const Family& family, Mixer mixer) {
  Recurrence r;
  const auto hidden = [&] { return c.count("hidden_size", "width of the model"); };
  if (mixer == Mixer::mamba2) return mamba2(c, family);
  if (mixer == Mixer::mamba1) {
    const Count inner = c.count("mamba_expand", "inner width / hidden_size", 1000) * hidden();
    const Count state = c.width("mamba_d_state", "states a channel");
    const Count rank = c.width("mamba_dt_rank", "rank of the step's projection");
    r.projected = 2 * inner;
    r.convolved = inner;
    r.taps = c.width("mamba_d_conv", "taps of the convolution");
    r.convolution_bias = c.flag("mamba_conv_bias", true);
    r.projection_bias = c.flag("mamba_proj_bias", false);
    r.out = inner;
    // x_proj, dt_proj and its bias, A, D, and the norms of dt, B and C
    r.small = inner * (rank + 2 * state) + rank * inner + inner + inner * state + inner + rank +
              2 * state;
    r.state = inner * state;
  } else if (mixer == Mixer::delta) {
    const Count key_heads = c.width("linear_num_key_heads", "key heads of a linear layer");
    const Count value_heads = c.width("linear_num_value_heads", "value heads of a linear layer");
    const Count key = c.width("linear_key_head_dim", "width of a key head");
    const Count value = c.width("linear_value_head_dim", "width of a value head");
    r.convolved = 2 * key_heads * key + value_heads * value;
    r.projected = r.convolved + value_heads * value + 2 * value_heads;
    r.taps = c.width("linear_conv_kernel_dim", "taps of the convolution");
    r.out = value_heads * value;
    r.small = 2 * value_heads + value;  // dt_bias, A; the norm
    r.state = value_heads * key * value;
  } else {
    r.convolved = hidden();
    r.projected = 3 * hidden();
    r.taps = c.width("conv_L_cache", "taps of the convolution");
    r.convolution_bias = r.projection_bias = c.flag("conv_bias", false);
    r.out = hidden();
  }
  return r;
}

constexpr std::array<Mixer, 4> kRecurrent{Mixer::mamba1, Mixer::mamba2, Mixer::delta,
                                          Mixer::convolution};

// ---- Weights ------------------------------------------------------------------------------------

class Weights {
 public:
  Weights(const Fields& fields, ModelWeights& out) : fields_(fields), out_(out) {}

  // Adds the product of `factors` to a group.
  void add(const char* group, Split split, Kind kind, std::initializer_list<Count> factors) {
    Count product = 1;
    bool overflow = false;
    for (const Count f : factors) overflow |= __builtin_mul_overflow(product, f, &product);
    total_ += static_cast<double>(product);
    if (overflow || total_ > 1e15) fields_.fail("more than 10^15 parameters: no such model");
    for (WeightGroup& g : out_.groups) {
      if (g.name == group && g.split == split && g.kind == kind) {
        g.parameters += product;
        return;
      }
    }
    if (product > 0) out_.groups.push_back({group, product, split, kind});
  }
  void widen(Count inner) { out_.inner = std::max(out_.inner, inner); }

 private:
  const Fields& fields_;
  ModelWeights& out_;
  double total_ = 0;
};

void count_attention(const Fields& c, const Family& family, const ModelGeometry& m, Count layers,
                     Weights& w) {
  const Count hidden = c.count("hidden_size", "width of the model");
  const Count q = Count{m.query_heads} * m.head_dim;
  const Count kv = Count{m.kv_heads} * m.head_dim;
  const Count gated = family.mixing == Mixing::delta ? 2 : 1;  // Qwen3-Next gates its output
  const bool by_field = family.bias == Bias::by_field && c.flag("attention_bias", false);
  w.add("attention", Split::sharded, Kind::matrix, {layers, hidden, q, gated + 1});
  w.add("attention", Split::kv_heads, Kind::matrix, {layers, hidden, kv, 2});
  if (by_field || family.bias == Bias::qkv) {
    w.add("attention", Split::sharded, Kind::kept, {layers, q, gated});
    w.add("attention", Split::kv_heads, Kind::kept, {layers, kv, 2});
  }
  if (by_field) w.add("attention", Split::replicated, Kind::kept, {layers, hidden});
  if (family.qk_norm) w.add("norms", Split::replicated, Kind::kept, {layers, m.head_dim, 2});
  if (family.experts == Experts::gpt_oss)  // a learned sink logit a head
    w.add("attention", Split::sharded, Kind::kept, {layers, m.query_heads});
  w.widen((gated + 1) * q + 2 * kv);
}

void count_latent(const Fields& c, const ModelGeometry& m, Count layers, Weights& w) {
  const Count hidden = c.count("hidden_size", "width of the model");
  const Count heads = m.query_heads;
  const Count rank = c.count("kv_lora_rank", "width of the latent");
  const Count rope = c.count("qk_rope_head_dim", "rotary width of a key");
  const Count nope = c.count("qk_nope_head_dim", "width of a key without rotation");
  const Count value = c.count("v_head_dim", "width of a value head");
  const bool bias = c.flag("attention_bias", false);
  c.require("q_lora_rank", "rank of the query projection; null for none");
  if (c.has("q_lora_rank")) {
    const Count q_rank = c.count("q_lora_rank", "rank of the query projection");
    w.add("attention", Split::replicated, Kind::matrix, {layers, hidden, q_rank});
    w.add("attention", Split::sharded, Kind::matrix, {layers, q_rank, heads, nope + rope});
    w.add("norms", Split::replicated, Kind::kept, {layers, q_rank});
    if (bias) w.add("attention", Split::replicated, Kind::kept, {layers, q_rank});
  } else {
    w.add("attention", Split::sharded, Kind::matrix, {layers, hidden, heads, nope + rope});
  }
  w.add("attention", Split::replicated, Kind::matrix, {layers, hidden, rank + rope});
  w.add("attention", Split::sharded, Kind::matrix, {layers, rank, heads, nope + value});
  w.add("attention", Split::sharded, Kind::matrix, {layers, heads, value, hidden});
  w.add("norms", Split::replicated, Kind::kept, {layers, rank});
  if (bias) w.add("attention", Split::replicated, Kind::kept, {layers, rank + rope + hidden});
  w.widen(heads * (2 * (nope + rope) + 2 * value));
}

void count_recurrences(const Fields& c, const Family& family, const Layers& layers, Weights& w) {
  for (const Mixer mixer : kRecurrent) {
    const Count n = layers.of(mixer);
    if (n == 0) continue;
    const Count hidden = c.count("hidden_size", "width of the model");
    const Recurrence r = recurrence_of(c, family, mixer);
    w.add("recurrent", Split::sharded, Kind::matrix, {n, hidden, r.projected + r.out});
    w.add("recurrent", Split::sharded, Kind::kept,
          {n, r.convolved, r.taps + (r.convolution_bias ? 1 : 0)});
    w.add("recurrent", Split::sharded, Kind::kept, {n, r.small});
    if (r.projection_bias)
      w.add("recurrent", Split::sharded, Kind::kept, {n, r.projected + hidden});
    w.widen(r.projected + r.out);
  }
}

// LFM2 states a width that its code then changes.
Count lfm2_width(const Fields& c) {
  const char* key = c.has("block_ff_dim") ? "block_ff_dim" : "intermediate_size";
  Count width = c.count(key, "width of the feed-forward block");
  if (!c.flag("block_auto_adjust_ff_dim", true)) return width;
  width = 2 * width / 3;
  const double factor = c.real("block_ffn_dim_multiplier", "factor of the feed-forward width");
  const Count multiple = c.count("block_multiple_of", "what the width is rounded up to");
  width = static_cast<Count>(factor * static_cast<double>(width));
  return (width + multiple - 1) / multiple * multiple;
}

void count_dense(const Fields& c, const Family& family, Count layers, Weights& w) {
  const Count hidden = c.count("hidden_size", "width of the model");
  const Count width = family.mixing == Mixing::lfm2 ? lfm2_width(c)
                      : family.experts == Experts::granite
                          ? c.count("shared_intermediate_size", "width of the feed-forward block")
                          : c.count("intermediate_size", "width of the feed-forward block");
  const Count matrices = family.mixing == Mixing::nemotron ? 2 : 3;  // no gate
  w.add("feed-forward", Split::sharded, Kind::matrix, {layers, hidden, width, matrices});
  if (c.flag("mlp_bias", false)) {
    w.add("feed-forward", Split::sharded, Kind::kept, {layers, width, matrices - 1});
    w.add("feed-forward", Split::replicated, Kind::kept, {layers, hidden});
  }
  w.widen(matrices * width);  // gate, up, and their product
}

void count_experts(const Fields& c, const Family& family, Count layers, Weights& w) {
  const Experts e = family.experts;
  const Count hidden = c.count("hidden_size", "width of the model");
  const bool deepseek = e == Experts::deepseek_v2 || e == Experts::deepseek_v3;
  const bool qwen = e == Experts::qwen || e == Experts::qwen_shared;
  const Count experts = c.count(deepseek || e == Experts::nemotron ? "n_routed_experts"
                                : qwen || e == Experts::jamba      ? "num_experts"
                                                                   : "num_local_experts",
                                "experts of a layer");
  const Count width = c.count(
      deepseek || qwen || e == Experts::nemotron ? "moe_intermediate_size" : "intermediate_size",
      "width of an expert");
  const Count active = c.count("num_experts_per_tok", "experts that a token uses");
  const Count matrices = e == Experts::nemotron ? 2 : 3;
  w.add("experts", Split::sharded, Kind::experts, {layers, experts, hidden, width, matrices});
  w.add("router", Split::replicated, Kind::kept, {layers, experts, hidden});
  Count shared = 0;
  if (e == Experts::qwen_shared) {
    shared = c.count("shared_expert_intermediate_size", "width of the shared expert");
    w.add("router", Split::replicated, Kind::kept, {layers, hidden});  // the shared expert's gate
  } else if (deepseek && c.has("n_shared_experts")) {
    shared = width * c.count("n_shared_experts", "shared experts", 1000000, 0);
  } else if (e == Experts::granite) {
    shared = c.count("shared_intermediate_size", "width of the shared expert");
  } else if (e == Experts::nemotron) {
    shared = c.count("n_shared_experts", "shared experts", 1000000, 0) *
             c.count("moe_shared_expert_intermediate_size", "width of a shared expert");
  }
  w.add("shared experts", Split::sharded, Kind::matrix, {layers, hidden, shared, matrices});
  if (e == Experts::deepseek_v3 || e == Experts::nemotron)  // the correction that balances load
    w.add("router", Split::replicated, Kind::kept, {layers, experts});
  if (e == Experts::gpt_oss) {
    w.add("experts", Split::sharded, Kind::kept, {layers, experts, 2 * width + hidden});
    w.add("router", Split::replicated, Kind::kept, {layers, experts});
  }
  w.widen(matrices * (active * width + shared));
}

}  // namespace

Count state_bytes(const Fields& c, const Family& family, const Layers& layers) {
  Count bytes = 4;
  for (const char* key : {"mamba_ssm_cache_dtype", "mamba_ssm_dtype"}) {
    const std::string dtype = c.text(key);
    if (dtype == "bfloat16" || dtype == "float16") bytes = 2;
  }
  Count sum = 0;
  for (const Mixer mixer : kRecurrent) {
    if (layers.of(mixer) == 0) continue;
    const Recurrence r = recurrence_of(c, family, mixer);
    sum += layers.of(mixer) * (r.convolved * (r.taps - 1) * 2 + r.state * bytes);
  }
  return sum;
}

std::string checkpoint_dtype(const Fields& c) {
  if (c.has("quantization_config")) {
    const nlohmann::json& q = c.at("quantization_config");
    const auto word = [&](const char* key) {
      return q.is_object() && q.contains(key) && q[key].is_string() ? q[key].get<std::string>()
                                                                    : std::string();
    };
    const auto is_true = [&](const char* key) {
      return q.is_object() && q.contains(key) && q[key] == true;
    };
    const std::string method = word("quant_method");
    if (method == "fp8" || method == "fbgemm_fp8") return "fp8";
    if (method == "mxfp4") return "mxfp4";
    if ((method == "awq" || method == "gptq") && q.contains("bits"))
      return q["bits"] == 4 ? "int4" : q["bits"] == 8 ? "int8" : "";
    if (method == "bitsandbytes")
      return is_true("load_in_4bit") ? "int4" : is_true("load_in_8bit") ? "int8" : "";
    return "";
  }
  const std::string dtype = c.text(c.has("dtype") ? "dtype" : "torch_dtype");
  if (dtype == "bfloat16") return "bf16";
  if (dtype == "float16") return "fp16";
  if (dtype == "float32") return "fp32";
  return "";
}

void count_weights(const Fields& c, const Family& family, const Layers& layers,
                   const ModelGeometry& model, ModelWeights& out) {
  if (family.mixing == Mixing::unknown)
    c.fail(fmt::format("the weights of this model_type are not known; {}",
                       nearest_hint("", family_names())));
  Weights w(c, out);
  out.hidden = c.count("hidden_size", "width of the model");
  out.vocabulary = c.count("vocab_size", "tokens of the vocabulary", 100000000);
  const Count attention = layers.of(Mixer::attention);
  w.add("embedding", Split::sharded, Kind::kept, {out.vocabulary, out.hidden});
  if (!c.flag("tie_word_embeddings", family.tied))
    w.add("output head", Split::sharded, Kind::kept, {out.vocabulary, out.hidden});
  if (attention > 0 && model.latent) count_latent(c, model, attention, w);
  if (attention > 0 && !model.latent) count_attention(c, family, model, attention, w);
  count_recurrences(c, family, layers, w);
  if (layers.of(Block::dense) > 0) count_dense(c, family, layers.of(Block::dense), w);
  if (layers.of(Block::experts) > 0) count_experts(c, family, layers.of(Block::experts), w);
  w.add("norms", Split::replicated, Kind::kept,
        {Count{model.layers} * family.norms + 1, out.hidden});
}

}  // namespace kvspan::config
