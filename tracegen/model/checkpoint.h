// SPDX-License-Identifier: Apache-2.0
// Checkpoints of decoder-only transformers: a Hugging Face folder (config.json and safetensors, one
// file or shards) or one GGUF file. Weights stay mapped in the type in which they are stored;
// rows are widened to fp32 as they are needed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sim/trace/trace.h"

namespace kvspan::tracegen {

// Storage of a weight. The block formats are GGUF's: 32 (q*_0, q*_1) or 256 (q*_k) weights a block.
enum class WeightType : std::uint8_t {
  f32,
  f16,
  bf16,
  q8_0,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q4_k,
  q5_k,
  q6_k
};

[[nodiscard]] std::string_view weight_type_name(WeightType type);  // "BF16", "Q4_K", ...
[[nodiscard]] std::optional<WeightType> weight_type_named(std::string_view name);
[[nodiscard]] std::string weight_type_names();             // "F32, F16, ... or Q6_K"
[[nodiscard]] std::int64_t weight_block(WeightType type);  // weights in a block; 1, 32 or 256
[[nodiscard]] std::int64_t weight_block_bytes(WeightType type);

// `count` weights, a multiple of the block, widened to fp32.
//   bytes   not necessarily aligned, weight_block_bytes(type) a block
// Source: ggml, dequantize_row_*; the values are those of the gguf Python package.
void widen_weights(WeightType type, const std::byte* bytes, std::int64_t count, float* out);

// A matrix [rows, columns] that maps columns inputs to rows outputs (y = W x), as stored.
struct WeightMatrix {
  std::string name;
  WeightType type = WeightType::f32;
  std::int64_t rows = 0, columns = 0;
  std::span<const std::byte> bytes;  // rows of columns / weight_block(type) blocks
  // GGUF of the architecture "llama" stores q and k with the rows of each head interleaved (pairs
  // next to each other); with rope_heads > 0, row r here is stored row stored_row(r), so that all
  // readers see Hugging Face's order and the rotary layout "half".
  int rope_heads = 0;
  [[nodiscard]] std::int64_t stored_row(std::int64_t row) const;
  [[nodiscard]] bool empty() const { return rows == 0; }
};

// Rows [first, first + rows) of `matrix`, fp32 [rows, columns].
void widen_rows(const WeightMatrix& matrix, std::int64_t first, std::int64_t rows, float* out);

// What the forward pass needs to know of a model.
struct ModelSpec {
  std::string architecture;  // "llama", "mistral", "qwen2", "qwen3"
  std::string name;          // of the folder, of the GGUF's metadata, or of the file
  std::string licence;       // as the checkpoint states it; empty: it does not
  int layers = 0, hidden = 0, intermediate = 0;
  int query_heads = 0, kv_heads = 0, head_dim = 0;
  std::int64_t vocabulary = 0;
  std::int64_t context = 0;                  // max_position_embeddings; 0: not given
  double norm_eps = 0;                       // RMSNorm
  std::vector<std::int64_t> sliding_window;  // [layers], 0: none
  Rope rope;                                 // layout half, scaling applied
  double rope_attention_factor = 1;          // on cos and sin (YaRN)
  std::string rope_scaling;                  // JSON object for the trace's metadata; empty: none
  bool tied = false;                         // the head is the embedding
  std::string weights;                       // "BF16", "Q4_1 and F32", for messages and provenance

  // Of a row of all heads.
  [[nodiscard]] std::int64_t q_width() const { return std::int64_t{query_heads} * head_dim; }
  [[nodiscard]] std::int64_t kv_width() const { return std::int64_t{kv_heads} * head_dim; }
  [[nodiscard]] double score_scale() const {  // on q.k before the softmax
    return 1 / std::sqrt(static_cast<double>(head_dim));
  }
  [[nodiscard]] std::int64_t window(int layer) const {  // 0: none
    return sliding_window[static_cast<std::size_t>(layer)];
  }
};

// One layer. Empty matrices and vectors: the model has none. Vectors are fp32.
struct LayerWeights {
  WeightMatrix q, k, v, o;      // [heads * head_dim, hidden], o [hidden, heads * head_dim]
  WeightMatrix gate, up, down;  // [intermediate, hidden], down [hidden, intermediate]
  std::vector<float> q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias, down_bias;
  std::vector<float> q_norm, k_norm;  // [head_dim], RMSNorm of each head before the rotation
  std::vector<float> attention_norm, mlp_norm;  // [hidden]
};

class Checkpoint {
 public:
  // A folder with config.json, or a .gguf file.
  // Errors: CheckpointError naming file, key or tensor, what was found, and what was expected: an
  // architecture, activation, weight type or shape that the forward pass does not support; a tensor
  // that is missing or does not fit the file.
  [[nodiscard]] static Checkpoint open(const std::filesystem::path& path);

  [[nodiscard]] const ModelSpec& spec() const;
  [[nodiscard]] const LayerWeights& layer(int layer) const;
  [[nodiscard]] const WeightMatrix& embedding() const;         // [vocabulary, hidden]
  [[nodiscard]] const WeightMatrix& head() const;              // [vocabulary, hidden]
  [[nodiscard]] const std::vector<float>& final_norm() const;  // [hidden]
  [[nodiscard]] const std::vector<std::filesystem::path>& files() const;
  [[nodiscard]] std::int64_t bytes() const;  // of all weights, as stored
  // Tells the kernel that the mapped pages of a layer are not needed for now.
  void release(int layer) const;

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace kvspan::tracegen
