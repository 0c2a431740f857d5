// SPDX-License-Identifier: Apache-2.0
// Internal to the engine: one policy on one layer.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "sim/attention/layer_scores.h"
#include "sim/policy/layer_policy.h"
#include "sim/replay/engine.h"
#include "sim/replay/fidelity.h"

namespace kvspan {

// Rows [begin, end) of one layer whose terms are in memory; rows [first, last) of them are computed.
struct RowBlock {
  RowIndex begin = 0, end = 0;
  RowIndex first = 0, last = 0;
  std::int64_t key_end = 0;
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
};

// What the layers of one policy decided, by the index of the pass; kept only for policies that reuse
// the decisions of lower layers. [layers]
using DecisionBoard = std::vector<std::map<std::size_t, Decision>>;

// State of one policy on one layer: what is resident, what was scored, what was measured.
class Lane {
 public:
  Lane(const Policy& policy, const PassPlan& plan, const Trace& trace, const LayerShape& shape,
       const FidelityPlan& fidelity, Ledger& ledger, DecisionBoard& board);
  ~Lane();
  // Consumes the next block. REQUIRES: blocks come in order, without gaps.
  void process(const RowBlock& block);
  [[nodiscard]] LayerFidelity& fidelity() { return fidelity_; }
  [[nodiscard]] std::int64_t undecided() const { return undecided_; }
  [[nodiscard]] const std::vector<std::int64_t>& selected() const { return selected_; }

 private:
  friend class ReplayView;
  // One row of one query head under a mask of readable keys.
  struct Attended {
    const float* terms = nullptr;
    double sum = 0;  // over the readable keys, without the sink
    double sink = 0;
    double scale = 1;  // terms relative to the full row's
    double slack = 0;
  };
  struct Scratch {
    std::vector<float> row, rescue;
  };

  void begin_pass();
  void show(RowIndex begin, RowIndex end);
  void attend(RowIndex begin, RowIndex end);
  void attend_head(int head, RowIndex begin, RowIndex end);
  void end_pass();
  void evict(const Decision& decision);
  void add_file_column_mass();
  void measure_errors(int head, RowIndex begin, RowIndex end,
                      const std::vector<Attended>& attended);
  [[nodiscard]] bool untouched() const;
  void note_reads(const float* mask, RowIndex row, std::vector<char>& read) const;
  void finish_altered(int query_head, RowIndex row, std::span<const float> q,
                      std::span<const TokenIndex> entries, const std::vector<float>& terms,
                      double max);
  void measure_altered(int head, RowIndex begin, RowIndex end);
  void altered_row(int query_head, RowIndex row, std::span<const TokenIndex> entries);
  void hold_altered(const std::vector<Rewrite>& rewrites);
  void measure_spans(int query_head, RowIndex row, const float* mask);
  void count_selected(RowIndex begin, RowIndex end);
  [[nodiscard]] std::uint8_t* bits_of(int head, RowIndex row);
  [[nodiscard]] Attended attend_row(int query_head, RowIndex row, const float* mask, bool reads_all,
                                    Scratch& scratch) const;
  // What a row of this pass reads; `storage` is used when every row has a mask of its own.
  [[nodiscard]] const float* mask_of(int query_head, RowIndex row, std::vector<float>& storage);
  [[nodiscard]] bool reads_all(int query_head) const;
  [[nodiscard]] bool by_row() const { return selector_ != nullptr && selector_->by_row(); }
  [[nodiscard]] int group() const { return shape_.group(); }

  const Policy& policy_;
  const PassPlan& plan_;
  const Trace& trace_;
  LayerShape shape_;
  const FidelityPlan& fidelity_plan_;
  Ledger& ledger_;
  DecisionBoard& board_;
  LayerPolicy driver_;
  Needs needs_;
  LayerFidelity fidelity_;

  std::size_t pass_index_ = 0;
  Pass pass_;
  const RowBlock* block_ = nullptr;
  std::vector<std::vector<TokenIndex>> resident_;  // [heads] ascending
  std::vector<std::vector<float>> mask_;           // [heads][padded tokens] 1: resident
  std::vector<char> evicted_;                      // [heads] something has left
  Selector* selector_ = nullptr;                   // of this pass
  std::vector<Reads> reads_;                       // [query_heads] of a selector, this pass
  std::vector<std::vector<float>> read_mask_;      // [query_heads]
  std::vector<std::vector<double>> columns_;       // [query_heads][padded tokens]
  std::vector<double> column_slack_;               // [query_heads]
  std::vector<double> readable_;  // [query_heads][block rows] sum + sink, 0: not attended
  std::vector<std::int64_t> selected_;
  std::int64_t undecided_ = 0;

  // K and V as they are held, where a store altered them or positions are places in the cache.
  struct Altered {
    std::vector<float> panels;  // [kv_heads][padded(tokens) / kPanel, k_dim, kPanel]
    std::vector<float> values;  // [tokens, kv_heads, v_dim]
    std::vector<char> heads;    // [kv_heads] something differs
  };
  Altered altered_;
  bool absorbed_ = false;  // the store's state adds to outputs
};

}  // namespace kvspan
