// SPDX-License-Identifier: Apache-2.0
// Keys, values and queries of one sequence as a model computes them, in the form of a trace, so
// that policies meet in a running model what they meet in a file. Forks share what they have in
// common.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sim/attention/layer_scores.h"
#include "sim/trace/trace.h"
#include "tracegen/eval/forked_memory.h"
#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

// What a sequence's trace says of itself.
struct SequenceHead {
  RowIndex tokens = 0;  // room for so many
  RowIndex prompt = 0;
  std::vector<Span> spans;
  std::string source;
};

class Sequence {
 public:
  Sequence(const ModelSpec& model, const SequenceHead& head);
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;
  // REQUIRES: this is no fork; nobody writes to it from now on.
  [[nodiscard]] std::unique_ptr<Sequence> fork() const;

  // Rows of a layer from `row` on: q [rows, query_heads, head_dim], k and v [rows, kv_heads,
  // head_dim].
  [[nodiscard]] float* q(int layer, RowIndex row) const;
  [[nodiscard]] float* k(int layer, RowIndex row) const;
  [[nodiscard]] float* v(int layer, RowIndex row) const;
  // REQUIRES: read() has been told of the rows that are looked at.
  [[nodiscard]] LayerScores& scores(int layer) const {
    return *scores_[static_cast<std::size_t>(layer)];
  }
  // Of all rows that there is room for.
  [[nodiscard]] const Trace& trace() const { return *trace_; }
  // The first `rows`, with their ids, text and output projections: what policies are bound to.
  struct Text {
    std::vector<std::int32_t> ids, special_ids;
    std::vector<std::string> pieces;  // [ids]
  };
  [[nodiscard]] Trace prompt_trace(RowIndex rows, const Text& text,
                                   const Checkpoint& projections) const;

  // Of a sequence; of a fork that writes `rows` rows.
  [[nodiscard]] static std::int64_t bytes(const ModelSpec& model, RowIndex tokens);
  [[nodiscard]] static std::int64_t fork_bytes(const ModelSpec& model, RowIndex rows);

 private:
  Sequence(const ModelSpec& model, SequenceHead head, ForkedMemory memory);
  [[nodiscard]] float* at(int layer, std::int64_t offset) const;
  [[nodiscard]] std::map<std::string, TensorView> views(RowIndex rows) const;

  const ModelSpec& model_;
  SequenceHead head_;
  std::shared_ptr<const ForkedMemory> memory_;
  std::unique_ptr<const Trace> trace_;
  std::vector<std::unique_ptr<LayerScores>> scores_;
};

}  // namespace kvspan::tracegen
