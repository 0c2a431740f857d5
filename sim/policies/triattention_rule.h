// SPDX-License-Identifier: Apache-2.0
// The score of TriAttention, and the query statistics that it rests on.
#pragma once

#include <complex>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
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

// One set per KV head for all layers: what every layer's scorer asks, and is told alike.
class CutsOfModel {
 public:
  // centres_of: of a stored layer
  CutsOfModel(const Trace& trace, std::function<std::vector<QueryCentre>(int layer)> centres_of)
      : trace_(trace), centres_of_(std::move(centres_of)) {}
  // Mean over layers of their scores. REQUIRES: all layers hold these entries.
  void score(const View& view, int head, std::span<const TokenIndex> entries,
             std::span<double> out);

 private:
  struct Cut {
    std::vector<TokenIndex> entries;
    std::vector<double> scores;
  };
  const Trace& trace_;
  std::function<std::vector<QueryCentre>(int)> centres_of_;
  std::vector<std::vector<QueryCentre>> centres_;  // [stored layers], once somebody asks
  std::mutex mutex_;
  std::map<std::pair<RowIndex, int>, Cut> cuts_;  // by pass end and head
};

class OverLayers final : public Scorer {
 public:
  OverLayers(std::shared_ptr<CutsOfModel> cuts, bool calibrated)
      : cuts_(std::move(cuts)), calibrated_(calibrated) {}
  Needs needs() const override { return {.q = !calibrated_, .k = true}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    cuts_->score(view, head, entries, out);
    return 0;
  }

 private:
  std::shared_ptr<CutsOfModel> cuts_;
  bool calibrated_;
};

}  // namespace kvspan::policies
