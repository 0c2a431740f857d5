// SPDX-License-Identifier: Apache-2.0
// How VaSE ranks what lies before its buffer.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

struct VaseSettings {
  RowIndex buffer = 0;         // the newest, which stay, and whose queries vote
  std::size_t sinks = 0;       // first places, which stay
  std::size_t large = 0;       // with the largest values, which stay
  std::string size = "range";  // of a value: range, variance, l2
  int kernel = 1;              // average pooling of the votes
  int sketch = 0;              // columns of the random matrix of form=dkv
  std::uint64_t seed = 0;
};

// form=attnv: the largest values first, then a draw without replacement, weighed by the votes: the
// entry drawn first has the highest score.
class SampledVotes final : public Scorer {
 public:
  explicit SampledVotes(const VaseSettings& settings) : settings_(settings) {}
  Needs needs() const override { return {.q = true, .k = true, .v = true}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  VaseSettings settings_;
};

// form=dkv: |k G|^2 |v G|^2 over their sum, G random, drawn anew for every cut of a layer.
class SketchedNorms final : public Scorer {
 public:
  explicit SketchedNorms(const VaseSettings& settings) : settings_(settings) {}
  Needs needs() const override { return {.k = true, .v = true}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  VaseSettings settings_;
};

}  // namespace kvspan::policies
