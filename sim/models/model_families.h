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
  five_to_one  // sliding_window_pattern - 1 sliding layers, then a full one
};
enum class Bias : std::uint8_t { none, qkv, by_field };
enum class Experts : std::uint8_t {
  none,
  mixtral,
  qwen,
  qwen_shared,
  deepseek_v2,
  deepseek_v3,
  gpt_oss,
  jamba,
  granite,
  nemotron
};
enum class Mixing : std::uint8_t {
  attention,
  latent,
  jamba,
  delta,     // gated delta net beside gated attention
  granite,   // Mamba 2
  nemotron,  // Mamba 2, one mixer or one feed-forward block a layer
  lfm2,      // short convolutions
  unknown    // layer_types tells what holds KV; nobody tells how large the weights are
};

struct Family {
  const char* model_type;
  const char* architecture;
  bool tied;  // what an absent tie_word_embeddings means
  int norms;  // vectors of hidden_size in a layer
  Bias bias;
  bool qk_norm;
  Windows windows;
  Experts experts;
  Mixing mixing;
};

[[nodiscard]] std::vector<std::string> family_names();
// Null where none is named so.
[[nodiscard]] const Family* family_of_type(std::string_view model_type);
[[nodiscard]] const Family* family_of_architecture(std::string_view architecture);
// Of a model whose layers are told apart by layer_types and that no row is about.
[[nodiscard]] const Family& unknown_hybrid();

}  // namespace kvspan::config
