// SPDX-License-Identifier: Apache-2.0
// Attention of one stored head straight from the trace, for a picture and a table: who received
// probability while it was there, and what was lost after it had gone.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "sim/policy/policy.h"
#include "sim/trace/trace.h"

namespace kvspan {

// One of the `heads` stored heads of a stored layer: the trace's kv_heads, or its query_heads.
struct StoredHead {
  int layer = 0;
  int head = 0;
  int heads = 0;
};

struct HeadAttentionOptions {
  RowIndex begin = 0, end = 0;  // rows that are looked at; end 0: all
  std::int64_t grid = 512;      // cells of the map along each axis at most
  // Multiply-adds, about: above it, rows are an even sample. 0: no limit.
  std::int64_t max_cost = std::int64_t{1} << 34U;
  int threads = 0;                  // 0: all cores
  std::function<bool()> cancelled;  // polled; true ends it with Interrupted
};

// Probabilities are those of the full cache over the keys (a sink logit is left out, as in retained
// mass), the mean over the query heads that the stored head serves.
struct HeadAttention {
  std::int64_t grid = 0;  // as asked, at most tokens
  // [grid, grid] rows x tokens: the largest probability among the measured (row, token <= row)
  // pairs of a cell, row r in cell floor(r * grid / tokens), tokens likewise; NaN: no pair was
  // measured.
  std::vector<float> map;
  // [tokens] probability summed over the rows before the entry's death, and over those from it on;
  // of a sample of rows times rows / sampled rows.
  std::vector<float> received, lost;
  std::vector<RowIndex> rows;  // measured, ascending; of a score trace only what it captured
  bool sampled = false;        // rows were left out for max_cost
};

// The same bits for any number of threads.
//   deaths [tokens] row at which each entry of the head dies
// Memory: keys of one KV head in fp32, 64 MiB of rows (one row at least), 24 bytes a token, the
// map.
// REQUIRES: the head is one of the trace's, 0 <= begin < end <= tokens, grid >= 1.
// Errors: TraceError on NaN or infinity in the trace; Interrupted.
[[nodiscard]] HeadAttention attention_of_head(const Trace& trace, const StoredHead& stored,
                                              std::span<const std::uint32_t> deaths,
                                              const HeadAttentionOptions& options = {});

}  // namespace kvspan
