// SPDX-License-Identifier: Apache-2.0
// What DBudgetKV ranks by, and where it cuts.
#pragma once

#include <span>
#include <vector>

#include "sim/policies/shared/groups.h"

namespace kvspan::policies {

struct DBudgetSettings {
  double threshold = 0;
  TokenCount sinks = 0;
  RowIndex rows = 1;
  int skip = 0;
  bool sinks_in_norm = false;
  bool by_votes = false;
  // Layers that are left whole look at nothing.
  [[nodiscard]] bool skips(const LayerShape& shape) const { return shape.model_layer < skip; }
};

// First the sinks, from the first on, then the newest. That order is certain, but how far the
// budget cuts into it rests on attention: where a score trace hides some, no cut is decided.
class SinksThenNewest final : public Scorer {
 public:
  SinksThenNewest(TokenCount sinks, RowIndex rows) : sinks_(sinks), rows_(rows) {}
  Needs needs() const override { return {.last_rows = rows_}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  TokenCount sinks_;
  RowIndex rows_;
};

// Sums over the prompt's last rows of one query head, without pooling. The same doubt.
class LastVotes final : public Scorer {
 public:
  explicit LastVotes(RowIndex rows) : rows_(rows) {}
  Needs needs() const override { return {.last_rows = rows_}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 private:
  RowIndex rows_;
};

// One number for all heads of a layer.
class NormCut final : public Budget {
 public:
  explicit NormCut(const DBudgetSettings& settings) : settings_(settings) {}
  bool content_free() const override { return false; }
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& /*sizing*/) const override {
    return kAll;
  }
  void counts(const View& view, const Scores& scores, const Sizing& sizing,
              std::span<TokenCount> keep) const override;

 private:
  [[nodiscard]] std::vector<double> last_rows(const View& view, int query_head,
                                              std::span<const TokenIndex> entries) const;
  [[nodiscard]] TokenCount kept_of_votes(const View& view, const Scores& scores) const;
  [[nodiscard]] TokenCount kept_of_code(const View& view, std::span<const TokenIndex> entries,
                                        std::size_t sinks) const;
  [[nodiscard]] TokenCount kept_of_paper(const View& view, std::span<const TokenIndex> entries,
                                         std::size_t sinks) const;
  // Into the order, from the least important on: the last place from which on the norm is held.
  [[nodiscard]] std::size_t cut(std::span<const double> norm) const;
  DBudgetSettings settings_;
};

}  // namespace kvspan::policies
