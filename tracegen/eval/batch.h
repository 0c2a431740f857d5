// SPDX-License-Identifier: Apache-2.0
// Rows of many sequences go through the model together: weights are read once, attention is each
// sequence's own, under its policy.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <tbb/enumerable_thread_specific.h>

#include "sim/replay/block_terms.h"
#include "sim/replay/live_replay.h"
#include "tracegen/eval/sequence.h"
#include "tracegen/forward/layer_math.h"
#include "tracegen/forward/stable_dense.h"

namespace kvspan::tracegen {

// A sequence, and the policy that it runs under.
struct Branch {
  std::unique_ptr<Sequence> sequence;
  std::unique_ptr<LiveReplay> replay;
};

class Batch {
 public:
  // Everything outlives this. block_rows: of attention, at a time.
  Batch(const Checkpoint& checkpoint, StableDense& dense, const Geometry& geometry,
        const FidelityPlan& all_measured, RowIndex block_rows);

  // Rows [begin, begin + ids.size()) of a branch: one pass of its policy.
  struct Rows {
    Branch* branch = nullptr;
    RowIndex begin = 0;
    std::vector<std::int32_t> ids;
    // Of the same policy, and so far the same rows, which go through the model once for both; null:
    // none.
    Branch* twin = nullptr;
  };
  // What rows take here, beside their sequences.
  [[nodiscard]] static std::int64_t bytes(const ModelSpec& model, RowIndex rows);
  // REQUIRES: each branch once, at its next row. Runs on the calling arena's threads.
  void advance(std::span<const Rows> rows);
  // Logits [vocabulary] after the last row of rows[i], of the latest advance().
  void logits(std::span<const std::size_t> wanted, std::vector<std::vector<float>>& out);

 private:
  void attend(int layer, const Rows& rows, std::int64_t at);
  // Queries, keys and values of the rows that stand at `at` become the sequence's.
  void take(int layer, const Rows& rows, std::int64_t at, const Sequence& sequence) const;

  const Checkpoint& checkpoint_;
  const ModelSpec& spec_;
  const Geometry& geometry_;
  const FidelityPlan& measured_;
  RowIndex block_rows_;
  LayerMath math_;
  std::vector<char> all_rows_;                        // [tokens] 1: every row is computed
  std::vector<float> hidden_, q_, k_, v_, attended_;  // [rows of the batch, width]
  std::vector<std::int64_t> last_;                    // the last row of each branch in the batch
  tbb::enumerable_thread_specific<std::unique_ptr<BlockTerms>> terms_;
};

}  // namespace kvspan::tracegen
