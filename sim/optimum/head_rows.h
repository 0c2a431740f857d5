// SPDX-License-Identifier: Apache-2.0
// The rows of attention of one stored head, in order: what every value of an entry is summed from.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "sim/attention/head_attention.h"
#include "sim/attention/layer_scores.h"
#include "sim/base/types.h"
#include "sim/trace/trace.h"

namespace kvspan::optimum {

class HeadRows {
 public:
  HeadRows(const Trace& trace, const StoredHead& stored);

  // A row of one of the query heads that the stored head serves: its probability of key t is
  // terms[t] / sum, t <= row, with sum > 0.
  struct Row {
    RowIndex row = 0;
    const float* terms = nullptr;
    double sum = 0;
    double sink = 0;  // term of the sink logit, which is left out of probabilities; or 0
  };
  // Calls `use` for the rows of [begin, end) that count, query head after query head; rows without
  // any term are left out.
  // Errors: TraceError where a score trace does not hold all of such a row.
  void for_each(RowIndex begin, RowIndex end, std::span<const char> counts,
                const std::function<void(const Row&)>& use);

  [[nodiscard]] int query_heads() const { return served_; }
  // Values of the head [tokens, v_dim]. REQUIRES: the trace has v.
  [[nodiscard]] const float* values() const { return scores_.values(kv_head_); }

 private:
  void block(RowIndex begin, std::span<const char> counted,
             const std::function<void(const Row&)>& use);

  const Trace& trace_;
  int layer_;
  int group_;    // query heads of a KV head
  int served_;   // query heads of the stored head
  int kv_head_;  // that the stored head belongs to
  int first_;    // of its group: the first that the stored head serves
  std::size_t keys_;
  LayerScores scores_;
  std::vector<float> buffer_;  // [group][block rows][keys]
};

}  // namespace kvspan::optimum
