// SPDX-License-Identifier: Apache-2.0
// The scorer of expected attention.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "sim/policy/parameters.h"
#include "sim/policy/policy.h"

namespace kvspan::policies {

[[nodiscard]] inline Parameter future_parameter() {
  return {.name = "future",
          .fallback = "512",
          .unit = "rows",
          .help = "coming positions that are averaged",
          .range = {1, 1e6}};
}

// The mean query of a head before rotation, turned to the average of the next `future` positions.
class MeanFutureQuery {
 public:
  // Of the rows from `first` on.
  MeanFutureQuery(const LayerShape& shape, RowIndex first, std::int64_t future);
  ~MeanFutureQuery();
  // [k_dim], of all rows so far.
  [[nodiscard]] std::vector<double> of(const View& view, int query_head);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class Expected final : public Scorer {
 public:
  struct Settings {
    TokenCount sinks = 4;
    std::int64_t future = 512;
    bool covariance = true;
    bool by_value = true;
    double epsilon = 0;
  };
  Expected(const Settings& settings, const LayerShape& shape);
  ~Expected() override;
  Needs needs() const override { return {.q = true, .k = true, .v = settings_.by_value}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  struct State;
  Settings settings_;
  std::unique_ptr<State> state_;
};

}  // namespace kvspan::policies
