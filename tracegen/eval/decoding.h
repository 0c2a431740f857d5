// SPDX-License-Identifier: Apache-2.0
// What comes after the prompt, of many policies at once: answers, greedily, and readings of the
// reference, one row of each at a time as one batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "tracegen/eval/batch.h"
#include "tracegen/eval/closed_loop.h"

namespace kvspan::tracegen {

// One reading of the rows behind the prompt, under one policy.
struct Course {
  Branch branch;
  std::size_t entrant = 0;
  bool full = false;                 // the full cache's, which the others are compared with
  bool answers = false;              // else it reads the reference
  std::vector<std::int32_t> tokens;  // behind the prompt, so far
  std::vector<float> logits;         // after the latest row
  bool ended = false;
  // Of a reading: -ln p of each token, nats, and KL from the full cache's prediction.
  std::vector<float> nll;
  std::vector<double> divergence;
};

// Rows that the reference takes. Its last token predicts nothing, so that its row is only worth
// having where it belongs to the ledger, which is the answer's if there is one.
[[nodiscard]] RowIndex rows_of_reference(const LoopInput& input);

class Decoding {
 public:
  // `input` outlives this.
  explicit Decoding(const LoopInput& input) : input_(input) {}
  // Courses that stand at the prompt's end, to their own. The first call has the full cache's.
  //   progress  share that is done; may throw
  void run(Batch& batch, std::vector<Course>& courses, const std::function<void(double)>& progress);

 private:
  [[nodiscard]] RowIndex reference() const { return std::ssize(input_.reference); }
  [[nodiscard]] bool is_over(const Course& course) const;
  std::optional<std::int32_t> next_token(Course& course);
  void judge(Course& course, std::size_t at);

  const LoopInput& input_;
  std::vector<std::vector<float>> full_logits_;  // [reference][vocabulary]
};

}  // namespace kvspan::tracegen
