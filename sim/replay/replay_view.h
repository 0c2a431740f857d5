// SPDX-License-Identifier: Apache-2.0
// What a policy may ask about one layer in the middle of a replay: the parts that hold the answers,
// and the view that gives them, at the end of a pass, through the domain of one rule.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "sim/policy/model_budget.h"
#include "sim/policy/policy.h"
#include "sim/replay/fidelity.h"
#include "sim/replay/reads.h"
#include "sim/replay/residency.h"
#include "sim/replay/row_block.h"
#include "sim/replay/shared_work.h"
#include "sim/trace/trace.h"

namespace kvspan {

// What the layers of one policy know of each other.
struct DecisionBoard {
  explicit DecisionBoard(int layers) : decisions(static_cast<std::size_t>(layers)) {}
  // By the index of the pass; kept only for policies that reuse the decisions of lower layers.
  std::vector<std::map<std::size_t, Decision>> decisions;  // [layers]
  // Of a budget that is coupled over layers; empty while they are surveyed.
  Shares shares;
};

// One layer of one policy.
struct LayerState {
  LayerState(const Policy& policy, const PassPlan& plan, const Trace& of, const LayerShape& layer,
             const FidelityPlan& measured, Ledger& ledger, const DecisionBoard& decided,
             SharedWork* of_layer = nullptr);
  LayerState(const LayerState&) = delete;
  LayerState& operator=(const LayerState&) = delete;

  const Trace& trace;
  LayerShape shape;
  const FidelityPlan& fidelity;
  const DecisionBoard& board;
  SharedWork* shared;  // null: nothing is shared
  bool keeps_ranks;
  std::string q_name, k_name, v_name;  // of the tensors, for messages
  std::size_t pass_index = 0;
  Pass pass;
  const RowBlock* block = nullptr;
  Residency residency;
  PassReads reads;
  std::string ranking;      // that is shared with other budgets; empty: none
  bool plain;               // see holds_plainly()
  bool own_columns = true;  // false: those that are shared, until something leaves
  ColumnSums columns;
  [[nodiscard]] const ColumnSums& column_sums() const {
    return own_columns ? columns : shared->columns.columns();
  }
  std::vector<double> readable;  // [query_heads][block rows] sum + sink, 0: not attended
};

// Keys that a row reads [padded tokens]. `storage` is used where every row has a mask of its own.
[[nodiscard]] const float* mask_of(const LayerState& layer, int query_head, RowIndex row,
                                   std::vector<float>& storage);

class ReplayView final : public View {
 public:
  // rule: whose domain it is; null: all entries.
  ReplayView(const LayerState& layer, const Rule* rule);

  const LayerShape& shape() const override { return layer_.shape; }
  const Pass& pass() const override { return layer_.pass; }
  std::span<const TokenIndex> resident(int head) const override {
    return layer_.residency.entries(head);
  }
  std::span<const TokenIndex> cached(int head) const override {
    return layer_.residency.cached(head);
  }
  double votes(int query_head, RowIndex rows, std::span<const TokenIndex> entries,
               std::span<double> out) const override;
  double probabilities(int query_head, RowIndex row, std::span<const TokenIndex> entries,
                       std::span<double> out) const override;
  void logits(int query_head, RowIndex row, std::span<const TokenIndex> entries,
              std::span<double> out) const override;
  double column_sum(int query_head, std::span<const TokenIndex> entries,
                    std::span<double> out) const override;
  const Decision* lower(int layer) const override;
  std::span<const TokenCount> allotted() const override;
  const KnownScores* known(int head, std::span<const TokenIndex> entries) const override;
  void share(int head, std::span<const TokenIndex> entries, std::span<const double> scores,
             double slack) const override;
  std::shared_ptr<const void> known_state(RowIndex end) const override;
  void share_state(RowIndex end, const std::shared_ptr<const void>& state) const override;
  std::vector<float> query(int query_head, RowIndex row) const override;
  std::vector<float> key(int kv_head, TokenIndex token) const override;
  std::vector<float> value(int kv_head, TokenIndex token) const override;
  void keys(int kv_head, std::span<const TokenIndex> entries, std::span<float> out) const override;
  void values(int kv_head, std::span<const TokenIndex> entries,
              std::span<float> out) const override;
  void key_rows(TokenIndex begin, TokenIndex end, std::span<float> out) const override;
  void value_rows(TokenIndex begin, TokenIndex end, std::span<float> out) const override;
  double score_scale() const override { return layer_.trace.meta().score_scale; }
  const Rope* rope() const override;
  bool measures_output() const override { return layer_.fidelity.output_error; }
  bool keeps_ranks() const override { return layer_.keeps_ranks; }

 private:
  // Of entries whose scores are shared.
  [[nodiscard]] std::optional<SharedScores::Key> shared_key(
      int head, std::span<const TokenIndex> entries) const;
  // Adds p' of one row; returns its slack.
  double add_row(int query_head, RowIndex row, std::span<const TokenIndex> entries,
                 std::span<double> out) const;
  // The row as it attended; or over today's entries, or the rule's newborns.
  AttendedRow attended(int query_head, RowIndex row, const float* mask) const;
  // The prompt's last rows as if they stood behind this pass, with their own keys (as far from
  // each other as in the prompt, so their logits are the prompt's). Their p' is exact: no slack.
  void probe(int query_head, RowIndex rows, std::span<const TokenIndex> entries,
             std::span<double> out) const;

  const LayerState& layer_;
  const Rule* rule_;
  std::vector<float> newborns_;  // [padded tokens] the rule's keys; empty: all that are read
  mutable RowScratch scratch_;
  mutable std::vector<float> mask_storage_;
};

}  // namespace kvspan
