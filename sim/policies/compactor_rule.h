// SPDX-License-Identifier: Apache-2.0
// The two scores that Compactor blends, each standardised over all heads of a layer.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "sim/policy/policy.h"

namespace kvspan::policies {

struct CompactorSettings {
  TokenCount sinks = 0, recent = 0;  // that take no part
  RowIndex chunk = 0;                // of the non-causal attention; 0: no such score
  int sketch = -1;                   // columns of the random sketch, 0: none; -1: no leverage
  double blending = 1;               // of the leverage
  std::uint64_t seed = 0;
};

class CompactorScores final : public Scorer {
 public:
  explicit CompactorScores(const CompactorSettings& settings) : settings_(settings) {}
  Needs needs() const override {
    const bool attends = settings_.chunk > 0;
    return {.q = attends, .k = true, .v = attends};
  }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  void look_at_layer(const View& view, RowIndex from);
  CompactorSettings settings_;
  RowIndex seen_ = -1, from_ = 0;  // the pass that the scores are of, and its first candidate
  std::vector<std::vector<TokenIndex>> entries_;  // [heads]
  std::vector<std::vector<double>> scores_;       // [heads]
};

}  // namespace kvspan::policies
