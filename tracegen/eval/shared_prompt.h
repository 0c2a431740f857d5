// SPDX-License-Identifier: Apache-2.0
// A prompt that has run through the model once, with the full cache, for all who go on from it.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "sim/base/error.h"
#include "tracegen/eval/sequence.h"
#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

// What does not fit into the memory that it may have.
class NeedsMore final : public ConfigError {
 public:
  using ConfigError::ConfigError;
};

class SharedPrompt {
 public:
  //   most      bytes of anonymous memory
  //   progress  share of the layers; may throw
  // Errors: NeedsMore, before any work.
  SharedPrompt(const Checkpoint& checkpoint, const Sequence::Text& text, const SequenceHead& head,
               int threads, std::int64_t most, const std::function<void(double)>& progress);
  SharedPrompt(const SharedPrompt&) = delete;
  SharedPrompt& operator=(const SharedPrompt&) = delete;

  [[nodiscard]] RowIndex rows() const { return rows_; }
  [[nodiscard]] const Sequence& sequence() const { return sequence_; }
  // The prompt's rows alone, with text and output projections: what policies are bound to, so that
  // what they fit is fitted on nothing else.
  [[nodiscard]] const Trace& trace() const { return trace_; }
  // [vocabulary] after the prompt's last row.
  [[nodiscard]] std::span<const float> logits() const { return logits_; }
  // What it holds, and at most held, beside the checkpoint's mapped weights.
  [[nodiscard]] std::int64_t memory_bytes() const { return memory_bytes_; }

 private:
  RowIndex rows_;
  Sequence sequence_;
  std::vector<float> logits_;
  std::int64_t memory_bytes_ = 0;
  Trace trace_;
};

}  // namespace kvspan::tracegen
