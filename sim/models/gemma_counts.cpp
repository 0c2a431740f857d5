// SPDX-License-Identifier: Apache-2.0
#include "sim/models/gemma_counts.h"

#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace kvspan::config {
namespace {

using Split = WeightGroup::Split;
using Kind = WeightGroup::Kind;

void count_feed_forward(const Fields& c, int layer, Count width, Weights& w) {
  w.add_feed_forward("feed-forward", {layer}, kDenseNames, hidden_of(c) * width, 3);
  w.widen(3 * width);
}

// q, output and the norm of q of every layer; k, v and the norm of k of those that have their own.
void count_attention(const Fields& c, const ModelGeometry& m, int layer, const KvShape& shape,
                     bool own, bool has_values, Weights& w) {
  const Count hidden = hidden_of(c);
  const Count q = Count{m.query_heads} * shape.width;
  const Count kv = Count{shape.heads} * shape.width;
  const bool bias = c.flag("attention_bias", false);
  w.add_matrices("attention", Split::sharded, {layer}, kQueryNames, hidden * q);
  w.add_matrices("attention", Split::sharded, {layer}, kOutputNames, hidden * q);
  w.add("norms", Split::replicated, Kind::kept, {shape.width, own ? 2 : 1});
  if (bias) {
    w.add("attention", Split::sharded, Kind::kept, {q});
    w.add("attention", Split::replicated, Kind::kept, {hidden});
  }
  w.widen(2 * q + 2 * kv);
  if (!own) return;
  w.add_matrices("attention", Split::kv_heads, {layer}, kKeyNames, hidden * kv);
  if (has_values) w.add_matrices("attention", Split::kv_heads, {layer}, kValueNames, hidden * kv);
  if (bias) w.add("attention", Split::kv_heads, Kind::kept, {kv, has_values ? 2 : 1});
}

// Embeddings of every layer, and what mixes them in.
void count_layer_embeddings(const Fields& c, const ModelGeometry& m, Count width, Weights& w) {
  const Count hidden = hidden_of(c);
  const Count layers = m.layers;
  const Count words =
      c.count("vocab_size_per_layer_input", "tokens with embeddings by layer", 100000000);
  w.add("layer embeddings", Split::sharded, Kind::kept, {words, layers, width});
  w.add("layer embeddings", Split::sharded, Kind::matrix, {layers, hidden, width, 3});
  w.add("norms", Split::replicated, Kind::kept, {width + layers * hidden});
}

bool is_own(const Layers& layers, int layer) {
  return layers.mixers[static_cast<std::size_t>(layer)] == Mixer::attention;
}

bool slides(const Layers& layers, int layer) {
  return layers.windows[static_cast<std::size_t>(layer)] > 0;
}

}  // namespace

void count_gemma3n(const Fields& c, const Layers& layers, const ModelGeometry& m, Weights& w) {
  const Count hidden = hidden_of(c);
  const Count n = m.layers;
  c.require("intermediate_size", "width of the feed-forward blocks, or a list of one a layer");
  const nlohmann::json& widths = c.at("intermediate_size");
  if (widths.is_array() && widths.size() != static_cast<std::size_t>(n))
    c.wrong("intermediate_size", fmt::format("{} numbers, one a layer", n));
  for (int l = 0; l < m.layers; ++l) {
    const Fields own = widths.is_array()
                           ? c.part({{"intermediate_size", widths[static_cast<std::size_t>(l)]}})
                           : c;
    count_feed_forward(c, l, own.count("intermediate_size", "width of a feed-forward block"), w);
    count_attention(c, m, l, {m.kv_heads, m.head_dim}, is_own(layers, l), true, w);
  }
  const Count inputs = c.count("altup_num_inputs", "alternating inputs", 1000);
  const Count rank = c.count("laurel_rank", "rank of the residual's own projection");
  w.add("alternating inputs", Split::replicated, Kind::matrix, {2 * (inputs - 1), hidden, hidden});
  w.add("alternating inputs", Split::replicated, Kind::kept,
        {n, inputs * inputs * (inputs + 1) + hidden * inputs});
  w.add("laurel", Split::replicated, Kind::matrix, {n, hidden, rank, 2});
  w.add("norms", Split::replicated, Kind::kept, {n, hidden, 3});
  count_layer_embeddings(
      c, m, c.count("hidden_size_per_layer_input", "width of the embeddings by layer"), w);
}

KvShape gemma4_shape(const Fields& c, const ModelGeometry& m, int layer, bool slides) {
  KvShape shape{m.kv_heads, m.head_dim};
  const auto take = [&](const Fields& own, const char* heads, const char* width) {
    if (own.has(heads)) shape.heads = own.small(heads, "KV heads of a full layer", 65536);
    if (own.has(width)) shape.width = own.small(width, "width of a full layer's heads", 65536);
  };
  if (c.has("per_layer_config")) {  // transformers 5: the exceptions, by layer
    const nlohmann::json& layers = c.at("per_layer_config");
    if (!layers.is_object()) c.wrong("per_layer_config", "an object of layers");
    for (const auto& [key, own] : layers.items()) {
      const bool is_number = !key.empty() && key.size() < 6 &&
                             key.find_first_not_of("0123456789") == std::string::npos;
      if (is_number && std::stoi(key) == layer && own.is_object())
        take(c.part(own), "num_key_value_heads", "head_dim");
    }
  } else if (!slides) {
    const bool shared = c.flag("attention_k_eq_v", false);
    take(c, shared ? "num_global_key_value_heads" : "", "global_head_dim");
  }
  if (shape.heads < 1 || m.query_heads % shape.heads != 0) {
    c.fail(
        fmt::format("'num_attention_heads' is {}, expected a multiple of the {} KV heads of layer "
                    "{}",
                    m.query_heads, shape.heads, layer));
  }
  return shape;
}

void count_gemma4(const Fields& c, const Layers& layers, const ModelGeometry& m, Weights& w) {
  const Count hidden = hidden_of(c);
  const Count n = m.layers;
  const Count width = c.count("intermediate_size", "width of the feed-forward block");
  const bool wide = c.flag("use_double_wide_mlp", false);
  const bool values_are_keys = c.flag("attention_k_eq_v", false);
  for (int l = 0; l < m.layers; ++l) {
    const bool own = is_own(layers, l);
    const bool sliding = slides(layers, l);
    count_attention(c, m, l, gemma4_shape(c, m, l, sliding), own, sliding || !values_are_keys, w);
    count_feed_forward(c, l, width * (wide && !own ? 2 : 1), w);
  }
  w.add("buffers", Split::replicated, Kind::kept, {n});  // a scale a layer
  if (c.has("hidden_size_per_layer_input")) {
    const Count embedding =
        c.count("hidden_size_per_layer_input", "width of the embeddings by layer", 1000000, 0);
    if (embedding > 0) count_layer_embeddings(c, m, embedding, w);
  }
  if (!c.flag("enable_moe_block", false)) return;
  const Count experts = c.count("num_experts", "experts of a layer");
  const Count inner = c.count("moe_intermediate_size", "width of an expert");
  std::vector<int> all;
  for (int l = 0; l < m.layers; ++l) all.push_back(l);
  w.add_experts(all, experts * hidden * inner * 3);
  w.add("router", Split::replicated, Kind::kept, {n, (experts + 1) * hidden + experts});
  w.add("norms", Split::replicated, Kind::kept, {n, hidden, 3});
  w.widen(3 * (width + inner * c.count("top_k_experts", "experts that a token uses")));
}

}  // namespace kvspan::config
