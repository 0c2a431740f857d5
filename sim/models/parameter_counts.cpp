// SPDX-License-Identifier: Apache-2.0
#include "sim/models/parameter_counts.h"

#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/text.h"
#include "sim/models/gemma_counts.h"
#include "sim/models/recurrences.h"
#include "sim/models/weight_groups.h"

namespace kvspan::config {
namespace {

using Split = WeightGroup::Split;
using Kind = WeightGroup::Kind;
using LayerList = std::vector<int>;

Count number(const LayerList& layers) { return static_cast<Count>(layers.size()); }

struct Biases {
  bool qkv = false, out = false;
};
Biases biases_of(const Fields& c, const Family& family) {
  switch (family.bias) {
    case Bias::none:
      return {};
    case Bias::qkv:
      return {true, false};
    case Bias::qkv_flag:
      return {c.flag("qkv_bias", true), false};
    case Bias::by_field:
      return {c.flag("attention_bias", false), c.flag("attention_bias", false)};
    case Bias::qkv_by_field:
      return {c.flag("attention_bias", false), false};
    case Bias::out_apart:
      return {c.flag("attention_bias", true), c.flag("attention_out_bias", false)};
  }
  return {};
}

void count_attention(const Fields& c, const Family& family, const ModelGeometry& m,
                     const LayerList& layers, Weights& w) {
  const Count hidden = hidden_of(c);
  const Count n = number(layers);
  const Count q = Count{m.query_heads} * m.head_dim;
  const Count kv = Count{m.kv_heads} * m.head_dim;
  const Count gated = family.mixing == Mixing::delta ? 2 : 1;  // Qwen3-Next gates its output
  const Biases bias = biases_of(c, family);
  w.add_matrices("attention", Split::sharded, layers, kQueryNames, hidden * q * gated);
  w.add_matrices("attention", Split::sharded, layers, kOutputNames, hidden * q);
  w.add_matrices("attention", Split::kv_heads, layers, kKeyNames, hidden * kv);
  w.add_matrices("attention", Split::kv_heads, layers, kValueNames, hidden * kv);
  if (bias.qkv) {
    w.add("attention", Split::sharded, Kind::kept, {n, q, gated});
    w.add("attention", Split::kv_heads, Kind::kept, {n, kv, 2});
  }
  if (bias.out) w.add("attention", Split::replicated, Kind::kept, {n, hidden});
  const bool by_head = family.qk_norm == QkNorm::head ||
                       (family.qk_norm == QkNorm::by_field && c.flag("use_qk_norm", false));
  if (by_head) w.add("norms", Split::replicated, Kind::kept, {n, m.head_dim, 2});
  if (family.qk_norm == QkNorm::full) w.add("norms", Split::replicated, Kind::kept, {n, q + kv});
  if (family.experts == Experts::gpt_oss)  // a learned sink logit a head
    w.add("attention", Split::sharded, Kind::kept, {n, m.query_heads});
  w.widen((gated + 1) * q + 2 * kv);
}

void count_latent(const Fields& c, const ModelGeometry& m, const LayerList& layers, Weights& w) {
  const Count hidden = hidden_of(c);
  const Count n = number(layers);
  const Count heads = m.query_heads;
  const Count rank = c.count("kv_lora_rank", "width of the latent");
  const Count rope = c.count("qk_rope_head_dim", "rotary width of a key");
  const Count nope = c.count("qk_nope_head_dim", "width of a key without rotation");
  const Count value = c.count("v_head_dim", "width of a value head");
  const bool bias = c.flag("attention_bias", false);
  c.require("q_lora_rank", "rank of the query projection; null for none");
  if (c.has("q_lora_rank")) {
    const Count q_rank = c.count("q_lora_rank", "rank of the query projection");
    w.add_matrices("attention", Split::replicated, layers, "self_attn.q_a_proj", hidden * q_rank);
    w.add_matrices("attention", Split::sharded, layers, "self_attn.q_b_proj",
                   q_rank * heads * (nope + rope));
    w.add("norms", Split::replicated, Kind::kept, {n, q_rank});
    if (bias) w.add("attention", Split::replicated, Kind::kept, {n, q_rank});
  } else {
    w.add_matrices("attention", Split::sharded, layers, "self_attn.q_proj",
                   hidden * heads * (nope + rope));
  }
  w.add_matrices("attention", Split::replicated, layers,
                 "self_attn.kv_a_proj_with_mqa|self_attn.kv_a_proj", hidden * (rank + rope));
  w.add_matrices("attention", Split::sharded, layers, "self_attn.kv_b_proj",
                 rank * heads * (nope + value));
  w.add_matrices("attention", Split::sharded, layers, "self_attn.o_proj", heads * value * hidden);
  w.add("norms", Split::replicated, Kind::kept, {n, rank});
  if (bias) w.add("attention", Split::replicated, Kind::kept, {n, rank + rope + hidden});
  w.widen(heads * (2 * (nope + rope) + 2 * value));
}

// What chooses the tokens that a layer of sparse attention reads.
void count_indexers(const Fields& c, const LayerList& layers, Weights& w) {
  const Count hidden = hidden_of(c);
  const Count heads = c.count("index_n_heads", "heads of the indexer");
  const Count width = c.count("index_head_dim", "width of an indexer's key");
  const Count q_rank = c.count("q_lora_rank", "rank of the query projection");
  w.add_matrices("indexers", Split::replicated, layers, "self_attn.indexer.wq_b",
                 q_rank * heads * width);
  w.add_matrices("indexers", Split::replicated, layers, "self_attn.indexer.wk", hidden * width);
  w.add("indexers", Split::replicated, Kind::kept, {number(layers), hidden, heads});
  w.add("norms", Split::replicated, Kind::kept, {number(layers), width, 2});
}

void count_recurrences(const Fields& c, const Family& family, const Layers& layers, Weights& w) {
  for (const Mixer mixer : kRecurrent) {
    const LayerList mixed = layers.with(mixer);
    const Count n = number(mixed);
    if (n == 0) continue;
    const Count hidden = hidden_of(c);
    const Recurrence r = recurrence_of(c, family, mixer);
    w.add_matrices("recurrent", Split::sharded, mixed, kRecurrentNames,
                   hidden * (r.projected + r.out));
    w.add("recurrent", Split::sharded, Kind::kept,
          {n, r.convolved, r.taps + (r.convolution_bias ? 1 : 0)});
    w.add("recurrent", Split::sharded, Kind::kept, {n, r.small});
    if (r.in_bias) w.add("recurrent", Split::sharded, Kind::kept, {n, r.projected});
    if (r.out_bias) w.add("recurrent", Split::sharded, Kind::kept, {n, hidden});
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

void count_dense(const Fields& c, const Family& family, const LayerList& layers, Weights& w) {
  const Count hidden = hidden_of(c);
  const char* key = family.experts == Experts::granite  ? "shared_intermediate_size"
                    : family.experts == Experts::llama4 ? "intermediate_size_mlp"
                                                        : "intermediate_size";
  const Count width = family.mixing == Mixing::lfm2
                          ? lfm2_width(c)
                          : c.count(key, "width of the feed-forward block");
  const Count matrices = family.mixing == Mixing::nemotron ? 2 : 3;  // no gate
  w.add_feed_forward("feed-forward", layers, kDenseNames, hidden * width, matrices);
  if (c.flag("mlp_bias", false)) {
    w.add("feed-forward", Split::sharded, Kind::kept, {number(layers), width, matrices - 1});
    w.add("feed-forward", Split::replicated, Kind::kept, {number(layers), hidden});
  }
  w.widen(matrices * width);  // gate, up, and their product
}

// Experts that every token uses, together as wide as this; 0: none.
Count shared_width(const Fields& c, const Family& family, Count width) {
  switch (family.experts) {
    case Experts::qwen_shared:
      return c.count("shared_expert_intermediate_size", "width of the shared expert");
    case Experts::deepseek_v2:
    case Experts::deepseek_v3: {
      const char* key = c.one_of({"n_shared_experts", "num_shared_experts"});
      return c.has(key) ? width * c.count(key, "shared experts", 1000000, 0) : 0;
    }
    case Experts::granite:
      return c.count("shared_intermediate_size", "width of the shared expert");
    case Experts::nemotron:
      return c.count("moe_shared_expert_intermediate_size", "width of the shared expert");
    case Experts::llama4:
    case Experts::hunyuan:
      return width;
    default:
      return 0;
  }
}

struct ExpertKeys {
  const char *count, *width, *active;
};
// transformers 5 renamed fields of some families, and papers' own code has other names still.
ExpertKeys expert_keys(const Fields& c, Experts family) {
  const char* active =
      c.one_of({"num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts"});
  switch (family) {
    case Experts::deepseek_v2:
    case Experts::deepseek_v3:
    case Experts::nemotron:
      return {c.one_of({"n_routed_experts", "num_experts", "num_local_experts"}),
              "moe_intermediate_size", active};
    case Experts::qwen:
    case Experts::qwen_shared:
      return {c.one_of({"num_experts", "num_local_experts"}), "moe_intermediate_size", active};
    case Experts::jamba:
    case Experts::hunyuan:
      return {c.one_of({"num_experts", "num_local_experts"}), "intermediate_size", active};
    default:
      return {c.one_of({"num_local_experts", "num_experts"}), "intermediate_size", active};
  }
}

void count_experts(const Fields& c, const Family& family, const LayerList& layers, Weights& w) {
  const Experts e = family.experts;
  const Count hidden = hidden_of(c);
  const Count n = number(layers);
  const ExpertKeys keys = expert_keys(c, e);
  const Count experts = c.count(keys.count, "experts of a layer");
  const Count width = c.count(keys.width, "width of an expert");
  const Count active = c.count(keys.active, "experts that a token uses");
  const Count matrices = e == Experts::nemotron ? 2 : 3;
  // Nemotron 3: experts are as narrow as a latent that all of them share.
  const bool latent = e == Experts::nemotron && c.has("moe_latent_size");
  const Count inner = latent ? c.count("moe_latent_size", "width of what experts read") : hidden;
  w.add_experts(layers, experts * inner * width * matrices);
  w.add("router", Split::replicated, Kind::kept, {n, experts, hidden});
  if (latent) {
    w.add_matrices("experts", Split::replicated, layers, "mixer.fc1_latent_proj", hidden * inner);
    w.add_matrices("experts", Split::replicated, layers, "mixer.fc2_latent_proj", hidden * inner);
  }
  const Count shared = shared_width(c, family, width);
  w.add_feed_forward("shared experts", layers, kSharedNames, hidden * shared, matrices);
  if (e == Experts::nemotron && c.flag("mlp_bias", false))
    w.add("shared experts", Split::replicated, Kind::kept,
          {n, shared + hidden + (latent ? inner + hidden : 0)});
  if (e == Experts::qwen_shared)  // the shared expert's gate
    w.add("router", Split::replicated, Kind::kept, {n, hidden});
  if (e == Experts::deepseek_v3 || e == Experts::nemotron || e == Experts::minimax)
    w.add("buffers", Split::replicated, Kind::kept, {n, experts});  // balances load
  if (e == Experts::gpt_oss) {
    w.add("experts", Split::sharded, Kind::kept, {n, experts, 2 * width + hidden});
    w.add("router", Split::replicated, Kind::kept, {n, experts});
  }
  w.widen(matrices * (active * width + shared));
}

// The code of Nemotron-H and Kimi Linear ties nothing, whatever the file says.
bool is_tied(const Fields& c, const Family& family) {
  return family.mixing != Mixing::nemotron && family.mixing != Mixing::kimi &&
         c.flag("tie_word_embeddings", family.tied);
}

}  // namespace

void count_weights(const Fields& c, const Family& family, const Layers& layers,
                   const Quantization& quantization, const ModelGeometry& model,
                   ModelWeights& out) {
  if (family.mixing == Mixing::unknown)
    c.fail(fmt::format("the weights of this model_type are not known; {}",
                       nearest_hint("", family_names())));
  Weights w(c, quantization, out);
  out.hidden = hidden_of(c);
  out.vocabulary = c.count("vocab_size", "tokens of the vocabulary", 100000000);
  w.add("embedding", Split::sharded, Kind::kept, {out.vocabulary, out.hidden});
  if (!is_tied(c, family))
    w.add("output head", Split::sharded, Kind::kept, {out.vocabulary, out.hidden});
  w.add("norms", Split::replicated, Kind::kept,
        {Count{model.layers} * family.norms + 1, out.hidden});
  if (family.mixing == Mixing::gemma3n) return count_gemma3n(c, layers, model, w);
  if (family.mixing == Mixing::gemma4) return count_gemma4(c, layers, model, w);
  const LayerList attention = layers.with(Mixer::attention);
  const LayerList dense = layers.with(Block::dense);
  const LayerList experts = layers.with(Block::experts);
  if (model.latent) {
    count_latent(c, model, attention, w);
  } else {
    count_attention(c, family, model, attention, w);
  }
  if (family.mixing == Mixing::sparse) count_indexers(c, attention, w);
  count_recurrences(c, family, layers, w);
  if (!dense.empty()) count_dense(c, family, dense, w);
  if (!experts.empty()) count_experts(c, family, experts, w);
}

}  // namespace kvspan::config
