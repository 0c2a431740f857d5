// SPDX-License-Identifier: Apache-2.0
// A block of rows of one layer whose softmax terms are in memory, shared by all policies; and rows
// of it over the keys that a policy still reads.
#pragma once

#include <deque>
#include <span>
#include <vector>

#include "sim/attention/layer_scores.h"

namespace kvspan {

// Rows [begin, end) of one layer, of which those that somebody needs are computed.
struct RowBlock {
  RowIndex begin = 0, end = 0;
  std::vector<RowIndex> rows;  // that are computed, ascending; at most `capacity`
  RowIndex tokens = 0;         // of the trace
  const LayerScores* scores = nullptr;
  std::vector<RowTerms> info;  // [query_heads][capacity]
  std::vector<double>
      full_output;        // [query_heads][capacity][v_dim], unnormalised; empty: no values
  RowIndex capacity = 0;  // rows a buffer holds
  // Rows [from, to) of the trace become the block; `needed` [tokens] says which are computed.
  void move_to(RowIndex from, RowIndex to, std::span<const char> needed);
  [[nodiscard]] bool has(RowIndex row) const {
    return row >= begin && row < end && places_[index(row - begin)] >= 0 && scores->has_row(row);
  }
  // REQUIRES: has(row).
  [[nodiscard]] std::size_t at(int query_head, RowIndex row) const {
    return index(query_head) * index(capacity) + index(places_[index(row - begin)]);
  }
  [[nodiscard]] const RowTerms& full(int query_head, RowIndex row) const {
    return info[at(query_head, row)];
  }

 private:
  std::vector<std::int32_t> places_;  // [end - begin] in `rows`; -1: not computed
};

// One row of one query head over the keys that it reads.
struct AttendedRow {
  const float* terms = nullptr;  // of all keys; null: not looked at
  double sum = 0;                // over the keys that are read, without the sink
  double sink = 0;
  double scale = 1;  // terms relative to the full row's
  double slack = 0;
  [[nodiscard]] double whole() const { return sum + sink; }
};

// Where rows are put that the block does not hold.
struct RowScratch {
  std::vector<float> row, rescue;
  // Rows of a query head that were computed together, to be looked at one after the other.
  struct Ahead {
    int query_head = -1;
    std::vector<RowIndex> rows;   // ascending
    std::vector<RowTerms> terms;  // [rows]
    std::vector<float> buffer;
  } ahead;
};

// Computes those of the rows [begin, end) that the block lacks, as many as fit, for attend_row().
// Returns the first row that is left for another call, or `end`. REQUIRES: a qkv trace.
RowIndex look_ahead(const RowBlock& block, int query_head, RowIndex begin, RowIndex end,
                    RowScratch& scratch);

// A row of the block, or an earlier one, which is computed anew.
//   mask    [padded tokens] 1: read; null: all keys
[[nodiscard]] AttendedRow attend_row(const RowBlock& block, int query_head, RowIndex row,
                                     const float* mask, RowScratch& scratch);

// Several rows of the block under one mask, the same bits; out [rows]. Rows that are redone, since
// what they read lies far below their maximum, lie in `redone`. REQUIRES: block.has() of each.
void attend_rows(const RowBlock& block, int query_head, std::span<const RowIndex> rows,
                 const float* mask, std::deque<RowScratch>& redone, std::span<AttendedRow> out);

}  // namespace kvspan
