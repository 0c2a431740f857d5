// SPDX-License-Identifier: Apache-2.0
// Internal to the engine: one policy on one layer. Every pass is begun, attends block by block, and
// ends with the policy's decision.
#pragma once

#include <deque>
#include <vector>

#include "sim/policy/layer_policy.h"
#include "sim/replay/fidelity.h"
#include "sim/replay/held_vectors.h"
#include "sim/replay/replay_view.h"

namespace kvspan {

class Lane {
 public:
  // `board` takes up what is decided, where somebody asks for it; `shared` what other policies need
  // not do again, null: nothing is shared.
  Lane(const Policy& policy, const PassPlan& plan, const Trace& trace, const LayerShape& shape,
       const FidelityPlan& fidelity, Ledger& ledger, DecisionBoard& board,
       SharedWork* shared = nullptr);
  // Consumes the next block. REQUIRES: blocks come in order, without gaps.
  void process(const RowBlock& block) { process(block, {}); }
  // The same, and hands over what its rows read, for a model at work.
  //   outputs  [rows of the block][query_heads][v_dim]; empty: not wanted
  // REQUIRES: outputs are wanted only where all rows are computed and measured, with output errors.
  void process(const RowBlock& block, std::span<float> outputs);
  // From here on its rows are no longer those of others: nothing is shared.
  void part();
  // It looks at the column sums that the layer shares.
  [[nodiscard]] bool shares_columns() const { return needs_.column_sums && !now_.own_columns; }
  // In this block of the prompt it does what other budgets of its ranking do, too.
  [[nodiscard]] bool does_as_others(RowIndex block_end) const {
    if (now_.ranking.empty() || !now_.residency.whole() || block_end > plan_.prompt) return false;
    return needs_.observe != Observe::never ||
           (now_.pass.end == block_end && driver_.due(now_.pass));
  }
  [[nodiscard]] LayerFidelity& fidelity() { return fidelity_; }
  [[nodiscard]] std::int64_t undecided() const { return undecided_; }
  // What the layer showed at the evict point, where a budget of all layers has not been shared out.
  [[nodiscard]] LayerShow& shown() { return shown_; }
  [[nodiscard]] const std::vector<std::int64_t>& loaded() const { return now_.reads.loaded(); }

 private:
  struct HeadRows;

  // From here on the sums are not the full cache's, or others go on at another row.
  void own_columns();
  void begin_columns();
  void begin_pass(RowIndex block_end);
  void attend(RowIndex begin, RowIndex end);
  void attend_head(int head, RowIndex begin, RowIndex end);
  void attend_rows(int query_head, HeadRows& rows);
  void attend_by_row(int query_head, HeadRows& rows);
  void add_columns(int query_head, const HeadRows& rows, std::size_t begin, std::size_t end,
                   const float* mask);
  void measure_mass(int query_head, RowIndex row, const AttendedRow& attended, const float* mask);
  void measure_outputs(const HeadRows& rows);
  void measure_held(const HeadRows& rows);
  void show(RowIndex begin, RowIndex end);
  void end_pass();
  [[nodiscard]] std::vector<const View*> views(std::deque<ReplayView>& storage) const;
  void apply(const Decision& decision);
  void add_file_column_mass();

  // A budget of all layers is still to be shared out: this walk is their survey.
  [[nodiscard]] bool surveys() const;
  // A row of the block whose attention somebody looks at.
  [[nodiscard]] bool wants(int query_head, RowIndex row) const;
  [[nodiscard]] bool measures(int query_head, RowIndex row) const {
    return now_.fidelity.measures(row) &&
           now_.fidelity.measures_head(now_.shape.layer, now_.shape.kv_head_of_query(query_head));
  }
  // Every row reads the full cache, as the model left it.
  [[nodiscard]] bool untouched() const;
  [[nodiscard]] int group() const { return now_.shape.group(); }
  [[nodiscard]] const double* full_output(int query_head, RowIndex row) const;
  // Where the output of a row goes; null: nobody wants it.
  [[nodiscard]] float* output_of(int query_head, RowIndex row) const;
  void hand_over_full(int query_head, RowIndex row) const;

  const Policy& policy_;
  const PassPlan& plan_;
  Ledger& ledger_;
  DecisionBoard& board_;
  LayerState now_;
  LayerPolicy driver_;
  Needs needs_;
  HeldVectors held_;
  std::span<float> outputs_;  // of the block that is processed
  LayerFidelity fidelity_;
  std::int64_t undecided_ = 0;
  LayerShow shown_;
};

}  // namespace kvspan
