// SPDX-License-Identifier: Apache-2.0
// A block of rows of one layer whose softmax terms are in memory, shared by all policies; and one
// row of it over the keys that a policy still reads.
#pragma once

#include <vector>

#include "sim/attention/layer_scores.h"

namespace kvspan {

// Rows [begin, end) of one layer; rows [first, last) of them are computed.
struct RowBlock {
  RowIndex begin = 0, end = 0;
  RowIndex first = 0, last = 0;
  RowIndex tokens = 0;  // of the trace
  const LayerScores* scores = nullptr;
  std::vector<RowTerms> info;  // [query_heads][block rows]
  std::vector<double>
      full_output;        // [query_heads][block rows][v_dim], unnormalised; empty: no values
  RowIndex capacity = 0;  // rows a buffer holds
  [[nodiscard]] bool has(RowIndex row) const {
    return row >= first && row < last && scores->has_row(row);
  }
  [[nodiscard]] std::size_t at(int query_head, RowIndex row) const {
    return static_cast<std::size_t>(query_head) * static_cast<std::size_t>(capacity) +
           static_cast<std::size_t>(row - begin);
  }
  [[nodiscard]] const RowTerms& full(int query_head, RowIndex row) const {
    return info[at(query_head, row)];
  }
};

// One row of one query head over the keys that it reads.
struct AttendedRow {
  const float* terms = nullptr;  // of all keys
  double sum = 0;                // over the keys that are read, without the sink
  double sink = 0;
  double scale = 1;  // terms relative to the full row's
  double slack = 0;
  [[nodiscard]] double whole() const { return sum + sink; }
};

// Where rows are put that the block does not hold.
struct RowScratch {
  std::vector<float> row, rescue;
};

// A row of the block, or an earlier one, which is computed anew.
//   mask    [padded tokens] 1: read; null: all keys
[[nodiscard]] AttendedRow attend_row(const RowBlock& block, int query_head, RowIndex row,
                                     const float* mask, RowScratch& scratch);

}  // namespace kvspan
