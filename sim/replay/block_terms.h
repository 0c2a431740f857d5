// SPDX-License-Identifier: Apache-2.0
// Internal to the engine: attention of a block of rows of one layer, computed once for all who look
// at it.
#pragma once

#include <span>
#include <vector>

#include "sim/replay/fidelity.h"
#include "sim/replay/row_block.h"

namespace kvspan {

class BlockTerms {
 public:
  // Of at most `block_rows` rows that are needed; `values`: outputs of those that are measured, in
  // the heads of `layer` that are.
  BlockTerms(const Geometry& geometry, const FidelityPlan& fidelity, RowIndex block_rows,
             bool values, int layer = 0);
  // Rows [begin, end) become the block; `needed` [tokens] says which are computed. It stands until
  // the next call.
  const RowBlock& compute(const LayerScores& scores, RowIndex begin, RowIndex end,
                          std::span<const char> needed);

 private:
  void allocate();
  void compute_head(int kv_head);
  void compute_outputs(int kv_head, const std::vector<RowTerms>& info);

  const Geometry& geometry_;
  const FidelityPlan& fidelity_;
  bool values_;
  int layer_;
  RowBlock block_;
  std::size_t stride_;         // floats from one row of the buffer to the next
  std::vector<float> buffer_;  // [query_heads][block rows][stride]; empty until a row is needed
  std::vector<TokenIndex> all_keys_;
};

}  // namespace kvspan
