// SPDX-License-Identifier: Apache-2.0
// The roles of ForesightKV: drop scores, golden or learned, and the draw of the victims.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "sim/policies/foresightkv_fit.h"
#include "sim/policies/shared/golden_eviction.h"

namespace kvspan::policies {

// scorer=golden: the label itself, of the full cache.
class Golden final : public Scorer {
 public:
  Golden(const Geometry& geometry, int layer, RowIndex interval);
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  const Trace* trace_;
  int layer_;
  RowIndex interval_;
  RowIndex origin_;  // where block 0 begins
  bool known_ = false;
  Blocks future_;
  RowIndex rest_from_ = -1;
  Blocks rest_;  // what is left, from that row on, of a block that has begun
};

// What a model says of the statistics of the last interval, k and v.
class Foresight final : public Scorer {
 public:
  struct Settings : FitSource {
    Schedule schedule;
    RowIndex interval = 0;
    TokenCount budget = 0;
    bool vectors = true;  // k and v are features
  };
  Foresight(const LayerShape& shape, const Settings& settings);
  Needs needs() const override;
  void observe(const View& view, RowIndex begin, RowIndex end) override;
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  struct Head {
    bool started = false;  // it has been full
    RowIndex when = -1;
    std::vector<TokenIndex> tokens;
    std::vector<float> features;  // [tokens, stats, group]
  };
  const Head& update(const View& view, int head);
  [[nodiscard]] std::size_t width() const;

  LayerShape shape_;
  Settings settings_;
  std::vector<RunningSums> sums_;  // [query_heads]
  std::vector<Head> heads_;
  LayerModels models_;
};

// Draws victims from the twice as many worst; larger scores are kept.
[[nodiscard]] Pick sampled(std::uint64_t seed);

}  // namespace kvspan::policies
