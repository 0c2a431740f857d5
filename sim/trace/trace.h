// SPDX-License-Identifier: Apache-2.0
// Trace: an immutable, memory-mapped view of the attention of one real (or synthetic) sequence.
// Format version 1 (traces/README.md): q, k, v per layer ("qkv trace", exact), or attention
// probabilities ("score trace", bounded by its residual mass).
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sim/trace/safetensors.h"

namespace kvspan {

// Most tokens of a trace: keys are I32.
inline constexpr std::int64_t kMaxTokens = std::numeric_limits<std::int32_t>::max();

// The name of a stored layer's tensor: "layers.3.q".
[[nodiscard]] std::string layer_tensor(int layer, std::string_view suffix);

// A named token range [begin, end).
struct Span {
  std::string name;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// Rotary embedding of q and k, enough to undo and redo it.
//   inverse_frequencies [dim / 2], radians per position, after rope_scaling (default, linear,
//   llama3, yarn; anything else is a TraceError that names the type).
struct Rope {
  double theta = 10000.0;
  int dim = 0;
  bool interleaved = false;  // pairs (2i, 2i+1); otherwise halves (i, i + dim/2)
  std::vector<double> inverse_frequencies;
};

// The rotary embedding that a trace's metadata describe (rope_theta, rope_dim, rope_layout,
// rope_scaling); nullopt if there is none. Errors: TraceError naming `file` and the key.
[[nodiscard]] std::optional<Rope> read_rope(const Metadata& metadata, int head_dim,
                                            const std::string& file);

// Rotates a vector [head_dim] by `positions`: the first rope.dim elements, in the layout of the
// model. Rotating by p what stands at position r moves it to position r + p; by -r undoes the
// embedding.
void rotate(const Rope& rope, double positions, std::span<float> vector);

struct TraceMeta {
  int layers = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;  // head_dim unless the trace says otherwise
  int model_layers = 0;
  std::vector<int> layer_ids;  // [layers] the model's index of each stored layer
  std::int64_t tokens = 0;
  std::int64_t prompt_tokens = 0;
  double score_scale = 0;
  double logit_softcap = 0;                  // 0: none
  std::vector<std::int64_t> sliding_window;  // [layers], 0: none
  std::optional<Rope> rope;
  std::vector<std::int64_t> passes;  // ends of the prefill passes, for column_mass; may be empty
  std::vector<std::int64_t> special_ids;
  std::vector<Span> spans;
  std::string model, source, text, licence, created_by;  // provenance, may be empty
};

// How a score trace holds a layer's probabilities.
struct ScoreLayer {
  std::vector<std::int64_t> rows;           // [R] captured rows, ascending
  const TensorView* prob = nullptr;         // [R, query_heads, K], with index; or null
  const TensorView* index = nullptr;        // [R, query_heads, K]
  const TensorView* dense = nullptr;        // [R, query_heads, tokens]; or null
  const TensorView* lse = nullptr;          // [R, query_heads]
  const TensorView* column_mass = nullptr;  // [passes, query_heads, tokens]; or null
};

class Trace {
 public:
  // Errors: TraceError (see TensorSet::open); every required metadata key and every tensor's
  // presence, dtype and shape are checked here, values (NaN, infinity) by check() and when a layer
  // is loaded.
  [[nodiscard]] static Trace open(const std::filesystem::path& path);
  [[nodiscard]] static Trace from_tensors(TensorSet tensors, const std::string& name);

  [[nodiscard]] const TraceMeta& meta() const { return meta_; }
  [[nodiscard]] const std::string& name() const { return name_; }  // path as given
  [[nodiscard]] const TensorSet& tensors() const { return *tensors_; }
  [[nodiscard]] bool is_qkv() const { return qkv_; }  // otherwise a score trace
  [[nodiscard]] bool has_v() const { return has_v_; }
  [[nodiscard]] bool has_wo() const;

  // Tensors of stored layer l; null when the trace lacks them. Shapes as in the format.
  [[nodiscard]] const TensorView* q(int layer) const;
  [[nodiscard]] const TensorView* k(int layer) const;
  [[nodiscard]] const TensorView* v(int layer) const;
  [[nodiscard]] std::vector<float> sink_logits(int layer) const;  // [query_heads] or empty
  [[nodiscard]] const ScoreLayer& scores(int layer) const;        // REQUIRES: !is_qkv()
  // The UTF-8 piece of a token, or empty when the trace has no text.
  [[nodiscard]] std::string_view token_text(std::int64_t token) const;
  [[nodiscard]] std::vector<std::int32_t> token_ids() const;  // [tokens] or empty

  // SHA-256 of the file (index and shards one after the other); "" for a trace in memory.
  [[nodiscard]] std::string sha256() const;

 private:
  // Shared, because scores_ points into it: a copy of a trace must not outlive what it points to.
  std::shared_ptr<const TensorSet> tensors_ = std::make_shared<const TensorSet>();
  std::string name_;
  TraceMeta meta_;
  bool qkv_ = false;
  bool has_v_ = false;
  std::vector<ScoreLayer> scores_;
  const TensorView* token_text_ = nullptr;          // into tensors_, as its offsets
  const TensorView* token_text_offsets_ = nullptr;  // null: there is no text
};

}  // namespace kvspan
