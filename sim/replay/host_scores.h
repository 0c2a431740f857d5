// SPDX-License-Identifier: Apache-2.0
// The score pass on the CPU, with the engine's own kernels: figures have the bits of a walk that
// measures as it goes. The reference of the pass on a device.
#pragma once

#include <memory>

#include "sim/replay/score_pass.h"

namespace kvspan {

class HostScores final : public ScorePass {
 public:
  [[nodiscard]] std::string name() const override { return "host"; }
  // Memory: keys and values of the layer in fp32, 32 rows of all query heads, 8 bytes for each
  // entry of each vector.
  void measure(const ScoreTask& task, const std::function<void(const ScorePiece&)>& use) override;
};

// `pass`, and a random share of its rows on the CPU as well, which audit() compares.
// REQUIRES: 0 < share <= 1.
[[nodiscard]] std::shared_ptr<ScorePass> with_audit(std::shared_ptr<ScorePass> pass, double share,
                                                    std::uint64_t seed);

}  // namespace kvspan
