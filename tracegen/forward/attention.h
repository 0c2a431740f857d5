// SPDX-License-Identifier: Apache-2.0
// Causal attention of a block of rows that, beside the output, emits what a score trace holds: the
// log-sum-exp and the largest probabilities of each row, and the probability that each key
// received. The score matrix is never held. This is the CPU reference; cuda/attention.h does the
// same on a GPU.
#pragma once

#include <cstdint>

namespace kvspan::tracegen {

// Rows [first, first + rows) read keys [0, first + rows): row i reads j <= i, and i - window < j.
struct AttentionProblem {
  int query_heads = 0, kv_heads = 0, head_dim = 0;  // query head q reads KV head q / (group)
  std::int64_t first = 0, rows = 0;
  std::int64_t window = 0;                // 0: none
  float scale = 0;                        // on q.k before the softmax
  const std::uint8_t* visible = nullptr;  // [kv_heads, first + rows], 0: nobody reads this key
};

// Inputs fp32, host memory. What is null is not emitted. A row that may read nothing gets output 0,
// lse -infinity and no index.
struct AttentionTensors {
  const float* q = nullptr;  // [rows, query_heads, head_dim], post-rotary
  const float* k = nullptr;  // [first + rows, kv_heads, head_dim]
  const float* v = nullptr;  // [first + rows, kv_heads, head_dim]
  float* out = nullptr;      // [rows, query_heads, head_dim]
  int top_k = 0;
  float* prob = nullptr;           // [rows, query_heads, top_k], descending; ties: lower key first
  std::int32_t* index = nullptr;   // [rows, query_heads, top_k], their keys; -1 pads
  float* lse = nullptr;            // [rows, query_heads]
  float* column_mass = nullptr;    // [query_heads, column_stride], ADDED to
  std::int64_t column_stride = 0;  // >= first + rows
};

// Work is divided among the calling TBB arena's threads; the bits do not depend on their number.
void attention_cpu(const AttentionProblem& problem, const AttentionTensors& tensors);

}  // namespace kvspan::tracegen
