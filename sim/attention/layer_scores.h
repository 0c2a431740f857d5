// SPDX-License-Identifier: Apache-2.0
// Softmax terms of blocks of rows of one layer, from q and k or from stored probabilities: the one
// place where attention is computed. Everything downstream sees terms[j] with
//   p(j) = terms[j] / (sum + sink),   sum = sum over all keys of terms[j]
// For a qkv trace terms[j] = exp(z_j - max z); for a score trace terms[j] = p_j and sum + sink = 1
// (up to what the trace truncated).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "sim/policy/policy.h"
#include "sim/trace/trace.h"

namespace kvspan {

// What a score trace leaves open of a row: keys without a term share what terms lack of `total`.
struct RowCut {
  double captured = 0;                // sum of the terms
  std::int64_t keys = 0;              // with a term
  double total = 0;                   // of all keys, without the sink; 0: not stored (dense rows)
  double most = 0;                    // that a key without a term may have
  double relative = 0, absolute = 0;  // how far a stored probability is rounded
};

// A row's softmax: shared by all policies.
struct RowTerms {
  const float* terms = nullptr;  // [padded keys], zero at keys that the row cannot read
  double sum = 0;                // over all keys, without the sink logit
  double sink = 0;               // term of the sink logit, 0 if there is none
  double max = 0;                // of the logits (qkv trace)
  double slack = 0;              // by how much a single p may be wrong (score trace)
  RowCut cut;                    // score trace
};

// Keys of one layer in fp32 panels, and everything else that blocks of rows need. Keys and values
// are read when something first asks for them: who looks at no attention pays nothing.
// Memory: padded(tokens) * kv_heads * head_dim * 4 bytes, and the same for v.
// Everything may be called from several threads.
// Errors: TraceError on NaN or infinity in what is read of q, k, v or the probabilities.
class LayerScores {
 public:
  LayerScores(const Trace& trace, int layer);
  // Where keys and values lie when somebody else owns them: panels as of key_panels(), values as of
  // values(). Of a trace whose rows are still being written, read() says which ones are there.
  struct Storage {
    std::span<float> panels;  // [kv_heads][padded(tokens) / kPanel, head_dim, kPanel]
    std::span<float> values;  // [kv_heads][tokens, v_dim]
  };
  LayerScores(const Trace& trace, int layer, Storage storage);
  // Rows [begin, end) of k and v have been written. REQUIRES: a Storage; no other call meanwhile.
  void read(RowIndex begin, RowIndex end);
  // Holds the keys of one KV head, and only its query heads may be asked for.
  [[nodiscard]] static LayerScores of_kv_head(const Trace& trace, int layer, int kv_head);
  ~LayerScores();
  LayerScores(const LayerScores&) = delete;
  LayerScores& operator=(const LayerScores&) = delete;

  // False when a score trace did not capture the row.
  [[nodiscard]] bool has_row(RowIndex row) const;
  [[nodiscard]] bool is_qkv() const;
  [[nodiscard]] RowIndex window() const;  // the model's own sliding window, 0: none
  // First key that a row reads.
  [[nodiscard]] RowIndex first_key(RowIndex row) const {
    return window() == 0 || row < window() ? 0 : row - window() + 1;
  }

  // Terms of some rows for the query heads of one KV head; keys up to `key_end` are computed or
  // zero. out: pointers to padded rows, [query head of the group][row].
  struct Block {
    std::span<const RowIndex> rows;  // ascending
    std::int64_t key_end = 0;        // multiple of the panel width, > every row of the block
  };
  void compute(int kv_head, const Block& block, std::span<float* const> out,
               std::span<RowTerms> info) const;

  // One row of one query head, into `out` [padded(row + 1) or more].
  [[nodiscard]] RowTerms row(int query_head, RowIndex row, std::span<float> out) const;
  // Several, the same bits; out: pointers to [padded(last row + 1)]. REQUIRES: is_qkv().
  void rows(int query_head, std::span<const RowIndex> rows, std::span<float* const> out,
            std::span<RowTerms> info) const;
  // Logits of the same row, at the keys that it can read. REQUIRES: is_qkv().
  void logits(int query_head, RowIndex row, std::span<float> out) const;
  // The same row with its maximum taken over the keys of `mask` only, everything else zero: for
  // rows whose readable keys lie so far below the maximum that their terms underflow. nullopt-like:
  // sum 0 when no key is readable. `scale` receives exp(max - old max).
  [[nodiscard]] RowTerms rescued(int query_head, RowIndex row, const float* mask,
                                 std::span<float> out, double old_max, double& scale) const;
  // Terms of a query that is not in the trace: the logged query of `row`, re-rotated to `position`,
  // over the keys [first, end).
  [[nodiscard]] RowTerms probe(int query_head, RowIndex row, RowIndex position, RowIndex first,
                               RowIndex end, std::span<float> out) const;

  // Keys in panels [kv_heads][padded(tokens) / kPanel, head_dim, kPanel] (of_kv_head(): [1]).
  // REQUIRES: is_qkv().
  [[nodiscard]] std::span<const float> key_panels() const;
  // Values of one KV head in fp32 [tokens, v_dim], those of the next one behind them. REQUIRES: the
  // trace has v.
  [[nodiscard]] const float* values(int kv_head) const;
  // Column mass of prefill pass `pass` [tokens], or empty when the trace has none.
  [[nodiscard]] std::vector<float> column_mass(int query_head, std::size_t pass) const;

 private:
  struct Impl;
  LayerScores(const Trace& trace, int layer, int first_kv_head, int end_kv_head);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvspan
