// SPDX-License-Identifier: Apache-2.0
// One runner against another: everything that a run emits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tracegen/forward/runner.h"

namespace kvspan::tracegen::testing {

struct RunnerCase {
  std::vector<std::int32_t> ids;
  std::vector<std::int64_t> ends;  // of the passes; the last is ids.size()
  bool by_layer = true;            // all passes of a layer, then the next; else pass by pass
  Emit emit;
  bool hide =
      false;  // every third key of head 0 and one of four of the others, after the first row
};

struct LayerOutput {
  std::vector<float> q, k, v, prob, lse, mass;  // of all rows (mass: of all passes)
  std::vector<std::int32_t> index;
};
struct RunnerOutput {
  std::vector<LayerOutput> layers;
  std::vector<float> hidden, logits;
};

// Of tests/data/tracegen/checkpoints.
[[nodiscard]] Checkpoint tiny_checkpoint(const std::string& name);
// Two passes over a prompt, two decoded tokens, everything emitted.
[[nodiscard]] RunnerCase tiny_case();

[[nodiscard]] RunnerOutput run_case(Runner& runner, const ModelSpec& spec, const RunnerCase& input);

// Empty if no element differs by more than `tolerance` times the largest of its tensor; else the
// worst. Indices may differ where probabilities are that close (with lse emitted).
[[nodiscard]] std::string worst_difference(const RunnerOutput& want, const RunnerOutput& got,
                                           double tolerance);

}  // namespace kvspan::tracegen::testing
