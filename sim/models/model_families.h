// SPDX-License-Identifier: Apache-2.0
// Internal to the reader of config.json: the families of models, a row each, with what their
// modelling code fixes beyond the fields.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvspan::config {

enum class Windows : std::uint8_t {
  none,
  all,         // sliding_window, null for none
  required,    // the same, and an absent field does not mean null
  from_layer,  // use_sliding_window, from layer max_window_layers on
  every_other,
  five_to_one,  // sliding_window_pattern - 1 sliding layers, then a full one
  by_types,     // layer_types, never left out
  by_flag,      // use_sliding_window, and then layer_types
  chunked       // attention_chunk_size in all layers but those without rotary embedding
};
enum class Bias : std::uint8_t {
  none,
  qkv,
  qkv_flag,      // qkv_bias, absent: true
  by_field,      // attention_bias
  qkv_by_field,  // the same, never of the output
  out_apart      // attention_bias (absent: true) and, of the output, attention_out_bias
};
enum class QkNorm : std::uint8_t {
  none,
  head,     // one vector of head_dim for all heads
  full,     // as wide as all heads together
  by_field  // use_qk_norm: head
};
enum class Experts : std::uint8_t {
  none,
  mixtral,
  minimax,
  qwen,
  qwen_shared,
  deepseek_v2,
  deepseek_v3,  // with a correction that balances load
  gpt_oss,
  jamba,
  granite,
  llama4,
  hunyuan,
  nemotron
};
enum class Mixing : std::uint8_t {
  attention,
  latent,
  sparse,  // latent, and an indexer that chooses what is read
  kimi,    // latent beside Kimi delta attention
  jamba,
  delta,      // gated delta net beside gated attention
  granite,    // Mamba 2
  nemotron,   // Mamba 2, one mixer or one feed-forward block a layer
  falcon_h1,  // attention and Mamba 2 in every layer
  lfm2,       // short convolutions
  gemma3n,    // the last layers reuse KV; embeddings of every layer
  gemma4,     // the same, and two shapes of KV heads
  unknown     // layer_types tells what holds KV; nobody tells how large the weights are
};

struct Family {
  const char* model_type;
  const char* architecture;
  bool tied;  // what an absent tie_word_embeddings means
  int norms;  // vectors of hidden_size in a layer
  Bias bias;
  QkNorm qk_norm;
  Windows windows;
  Experts experts;
  Mixing mixing;
  [[nodiscard]] bool is_latent() const {
    return mixing == Mixing::latent || mixing == Mixing::sparse || mixing == Mixing::kimi;
  }
};

[[nodiscard]] std::vector<std::string> family_names();
// Null where none is named so.
[[nodiscard]] const Family* family_of_type(std::string_view model_type);
[[nodiscard]] const Family* family_of_architecture(std::string_view architecture);
// Of a model whose layers are told apart by layer_types and that no row is about.
[[nodiscard]] const Family& unknown_hybrid();

}  // namespace kvspan::config
