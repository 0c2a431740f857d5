// SPDX-License-Identifier: Apache-2.0
// Geometry of a model's KV cache, and the size of the rest of it, from a built-in list, a Hugging
// Face config.json, or a trace.
//
// A number that config.json does not give is refused by name, never guessed. Two things are not
// numbers of a checkpoint but part of its model_type's definition, and taken from there: what a
// boolean means where it is absent (tie_word_embeddings, attention_bias, ...), and the fixed order
// of sliding layers (Gemma 2: every other; Gemma 3: five, then a full one).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/policy/registry.h"

namespace kvspan {

// Parameters that are divided among GPUs, and stored, in the same way.
struct WeightGroup {
  enum class Split : std::uint8_t {
    sharded,    // 1 / tp of them on every GPU
    kv_heads,   // 1 / min(tp, KV heads): heads are not cut
    replicated  // on every GPU
  };
  // Formats of 8 bits and fewer are for matrices only; mxfp4 for those of experts only.
  enum class Kind : std::uint8_t { kept, matrix, experts };
  std::string name;
  std::int64_t parameters = 0;
  Split split = Split::sharded;
  Kind kind = Kind::kept;
};

struct ModelWeights {
  std::vector<WeightGroup> groups;  // vision towers and multi-token prediction are not in it
  std::string dtype;                // of the checkpoint: bf16, fp8, ...; empty: unknown
  std::string unknown_dtype;        // what the file says instead, if anything
  std::string refusal;              // why there is no count; empty: there is one
  // Widths for an estimate of activations, elements a token.
  std::int64_t hidden = 0;  // the residual stream
  std::int64_t inner = 0;   // the widest inside of a layer, divided among GPUs
  std::int64_t vocabulary = 0;
  [[nodiscard]] std::int64_t parameters() const;  // without buffers, which are stored, too
};

struct ModelGeometry {
  std::string name;
  int layers = 0, query_heads = 0, kv_heads = 0, head_dim = 0, v_head_dim = 0;
  std::vector<int>
      layer_ids;  // layers that hold KV; all of them unless hybrid or read from a trace
  std::vector<std::int64_t> sliding_window;  // [layer_ids] 0: none; empty: none at all

  std::string family = {};  // model_type; empty: read from a trace
  // MLA: head_dim is kv_lora_rank + qk_rope_head_dim; v_head_dim is the width of the indexer's key
  // of sparse attention, or 0.
  bool latent = false;
  std::int64_t max_context = 0;       // tokens; 0: not given
  std::string max_context_from = {};  // how that follows: "max_position_embeddings", ...
  // Recurrent and convolution states of the layers without KV, bytes a request whatever its length:
  // convolutions in 2 bytes, recurrences in 4 unless the config names their dtype.
  std::int64_t state_bytes = 0;
  ModelWeights weights = {};
  std::vector<std::string> notes = {};
  // Groups of layers that differ in their KV heads, each a model for itself; empty: all are alike,
  // as the fields above say. Their weights, state and limit are in the whole.
  std::vector<ModelGeometry> parts = {};
};

// Names of the built-in list.
[[nodiscard]] std::vector<std::string> known_models();

// A name of the list, a path to config.json (or its folder), or a trace.
// Errors: ConfigError naming the missing field, the unsupported architecture, or the nearest name.
[[nodiscard]] ModelGeometry load_model(const std::string& name_or_path);

// The geometry of a run of n prompt and m generated tokens.
[[nodiscard]] Geometry geometry_of(const ModelGeometry& model, std::int64_t prompt,
                                   std::int64_t generated, std::int64_t chunk,
                                   std::int64_t kv_bytes);

// "4096 tokens in layers 0,2,4 (3 of 6)"; empty: no layer slides.
[[nodiscard]] std::string describe_windows(const ModelGeometry& model);

}  // namespace kvspan
