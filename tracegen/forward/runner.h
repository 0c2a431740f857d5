// SPDX-License-Identifier: Apache-2.0
// The forward pass of a decoder-only transformer, one layer at a time, on a CPU or a GPU. Whoever
// drives it chooses the order: layer by layer over a whole prompt (memory holds one layer), or
// token by token through all layers (generation).
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "sim/policy/policy.h"
#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

// q, k and v of rows [first, first + rows) of one layer, as the attention reads them.
struct RowsQkv {
  int layer = 0;
  RowIndex first = 0;
  std::int64_t rows = 0;
  const float* q = nullptr;  // [rows, query_heads, head_dim], post-rotary
  const float* k = nullptr;  // [rows, kv_heads, head_dim], post-rotary
  const float* v = nullptr;  // [rows, kv_heads, head_dim]
};

// What the attention of the same rows emitted. Null: not asked for.
struct RowsScores {
  int layer = 0;
  RowIndex first = 0;
  std::int64_t rows = 0;
  int top_k = 0;
  const float* prob = nullptr;          // [rows, query_heads, top_k], descending
  const std::int32_t* index = nullptr;  // [rows, query_heads, top_k], -1 pads
  const float* lse = nullptr;           // [rows, query_heads]
};

// What is emitted beside the hidden states.
struct Emit {
  bool qkv = false;
  int top_k = 0;  // 0: no prob and index
  bool lse = false;
  bool column_mass = false;  // of each call of Runner::layer (one pass)
};

// The seam between the model and whoever looks at, or limits, its attention: capture observes, a
// cache policy in closed loop restricts. Called by one thread; pointers are valid during the call.
class AttentionHook {
 public:
  virtual ~AttentionHook() = default;
  [[nodiscard]] virtual Emit emit(int /*layer*/) { return {}; }
  // Which entries the rows [first, first + rows) may read, beside causality and the model's own
  // window: [kv_heads, first + rows], 0 = evicted; empty: all of them. Asked once a pass and layer,
  // before on_qkv; valid until the pass ends.
  [[nodiscard]] virtual std::span<const std::uint8_t> visible(int /*layer*/, RowIndex /*first*/,
                                                              std::int64_t /*rows*/) {
    return {};
  }
  virtual void on_qkv(const RowsQkv& /*rows*/) {}        // in blocks of rows, ascending
  virtual void on_scores(const RowsScores& /*rows*/) {}  // in blocks of rows, ascending
  // Probability that each key received from the rows of the pass: [query_heads, keys].
  virtual void on_column_mass(int /*layer*/, std::int64_t /*keys*/,
                              std::span<const float> /*mass*/) {}
};

struct RunnerOptions {
  std::int64_t tokens = 0;  // most rows of a sequence: n + m
  bool keep_kv = false;     // keys and values of all layers stay (generation), else of one
  std::filesystem::path scratch = {};  // folder for what is larger than memory should hold
  int threads = 0;                     // 0: all
  int top_k = 0;                       // most that an Emit will ask for
  // On a GPU: dense products of BF16 and attention of F16 (what a F16 trace stores), sums in fp32.
  // Otherwise all is fp32, without TF32, as on a CPU.
  bool half_precision = false;
  std::int64_t wave = 1024;  // rows that go through a layer together, on a GPU
};

class Runner {
 public:
  virtual ~Runner() = default;
  // fp32 rows of the embedding: hidden [ids.size(), hidden].
  virtual void embed(std::span<const std::int32_t> ids, std::span<float> hidden) = 0;
  // One pass of one layer: hidden [rows, hidden] in, overwritten by the layer's output. Keys and
  // values of rows [0, first) are those of earlier calls for this layer.
  // `progress` (may be empty) is told the share of the call that is done, and may throw.
  virtual void layer(int layer, RowIndex first, std::span<float> hidden, AttentionHook& hook,
                     const std::function<void(double)>& progress = {}) = 0;
  // Keys and values of rows that an earlier process ran through this layer, as on_qkv() gave them
  // (q is not read): as if layer() had been called. REQUIRES: keep_kv; ascending rows.
  virtual void restore(const RowsQkv& rows) = 0;
  // Final norm and head: logits [rows, vocabulary] of hidden [rows, hidden], handed over in blocks
  // of rows, ascending: use(first, rows, logits).
  virtual void head(std::span<const float> hidden,
                    const std::function<void(std::int64_t first, std::int64_t rows,
                                             const float* logits)>& use) = 0;
  [[nodiscard]] virtual std::string description() const = 0;  // "CPU, 2 threads, AVX3, fp32"
  // Bound on what it allocates on the host.
  [[nodiscard]] virtual std::int64_t memory_bytes() const = 0;
};

// Errors: CheckpointError on weights that are not numbers.
[[nodiscard]] std::unique_ptr<Runner> make_cpu_runner(const Checkpoint& checkpoint,
                                                      const RunnerOptions& options);

}  // namespace kvspan::tracegen
