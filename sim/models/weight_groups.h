// SPDX-License-Identifier: Apache-2.0
// Internal to the reader of config.json: parameters, added up by how they are divided and stored.
#pragma once

#include <initializer_list>
#include <string_view>
#include <vector>

#include "sim/models/config_fields.h"
#include "sim/models/model_geometry.h"
#include "sim/models/quantization.h"

namespace kvspan::config {

// What code bases call a matrix within its layer, separated by '|'.
inline constexpr std::string_view kQueryNames = "self_attn.q_proj|self_attn.qkv_proj|mixer.q_proj";
inline constexpr std::string_view kKeyNames = "self_attn.k_proj|self_attn.qkv_proj|mixer.k_proj";
inline constexpr std::string_view kValueNames = "self_attn.v_proj|self_attn.qkv_proj|mixer.v_proj";
inline constexpr std::string_view kOutputNames = "self_attn.o_proj|self_attn.out_proj|mixer.o_proj";
inline constexpr std::string_view kRecurrentNames =
    "linear_attn.in_proj|linear_attn.in_proj_qkvz|linear_attn.in_proj_qkv|linear_attn.out_proj|"
    "mamba.in_proj|mixer.in_proj|conv.in_proj|self_attn.f_a_proj";

// The names of gate, up and down.
struct FeedForwardNames {
  std::string_view gate, up, down;
};
inline constexpr FeedForwardNames kDenseNames{
    "mlp.gate_proj|mlp.gate_up_proj|feed_forward.gate_proj|feed_forward.w1|shared_mlp.input_linear",
    "mlp.up_proj|mlp.gate_up_proj|feed_forward.up_proj|feed_forward.w3|mixer.up_proj|"
    "shared_mlp.input_linear",
    "mlp.down_proj|feed_forward.down_proj|feed_forward.w2|mixer.down_proj|"
    "shared_mlp.output_linear"};
inline constexpr FeedForwardNames kSharedNames{
    "mlp.shared_experts.gate_proj|mlp.shared_expert.gate_proj|mlp.shared_mlp.gate_proj|"
    "feed_forward.shared_expert.gate_proj|block_sparse_moe.shared_experts.gate_proj|"
    "shared_mlp.input_linear",
    "mlp.shared_experts.up_proj|mlp.shared_expert.up_proj|mlp.shared_mlp.up_proj|"
    "feed_forward.shared_expert.up_proj|block_sparse_moe.shared_experts.up_proj|"
    "mixer.shared_experts.up_proj|shared_mlp.input_linear",
    "mlp.shared_experts.down_proj|mlp.shared_expert.down_proj|mlp.shared_mlp.down_proj|"
    "feed_forward.shared_expert.down_proj|block_sparse_moe.shared_experts.down_proj|"
    "mixer.shared_experts.down_proj|shared_mlp.output_linear"};

[[nodiscard]] inline Count hidden_of(const Fields& c) {
  return c.count("hidden_size", "width of the model");
}

class Weights {
 public:
  Weights(const Fields& fields, const Quantization& quantization, ModelWeights& out)
      : fields_(fields), quantization_(quantization), out_(out) {}

  // Adds the product of `factors` to a group.
  void add(const char* group, WeightGroup::Split split, WeightGroup::Kind kind,
           std::initializer_list<Count> factors);
  // A matrix of so many elements in each of `layers`, in 16 bits where the checkpoint leaves it so.
  void add_matrices(const char* group, WeightGroup::Split split, const std::vector<int>& layers,
                    std::string_view names, Count elements,
                    WeightGroup::Kind kind = WeightGroup::Kind::matrix);
  // Gate, up and down of each of `layers`; of two matrices, up and down.
  void add_feed_forward(const char* group, const std::vector<int>& layers,
                        const FeedForwardNames& names, Count elements, Count matrices);
  // All experts of each of `layers`.
  void add_experts(const std::vector<int>& layers, Count elements);
  void widen(Count inner);

 private:
  const Fields& fields_;
  const Quantization& quantization_;
  ModelWeights& out_;
  double total_ = 0;
};

}  // namespace kvspan::config
