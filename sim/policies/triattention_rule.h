// SPDX-License-Identifier: Apache-2.0
// The score of TriAttention, and the query statistics that it rests on.
#pragma once

#include <complex>
#include <memory>
#include <span>
#include <vector>

#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {

// Of the queries of one head before rotation, pair by pair of the rotary embedding.
struct QueryCentre {
  std::vector<std::complex<double>> mean;  // [pairs]
  std::vector<double> magnitude;           // [pairs] mean of absolute values
  std::vector<double> rest;                // mean of what is not rotated
};

// [query heads] of rows [0, end) of a stored layer; without rope_* fields nothing is rotated.
[[nodiscard]] std::vector<QueryCentre> query_centres(const Trace& trace, int layer, RowIndex end);

class Trigonometric final : public Scorer {
 public:
  // calibrated: the queries are not of the trace that is replayed.
  Trigonometric(std::vector<QueryCentre> centres, bool calibrated)
      : centres_(std::move(centres)), calibrated_(calibrated) {}
  Needs needs() const override { return {.q = !calibrated_, .k = true}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  std::vector<QueryCentre> centres_;
  bool calibrated_;
};

}  // namespace kvspan::policies
