// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/measure_apart.h"

#include <algorithm>

namespace kvspan {
namespace {

class Measurement {
 public:
  Measurement(const Trace& trace, const FidelityPlan& plan, int layer,
              const std::vector<const Ledger*>& ledgers)
      : trace_(trace), plan_(plan), layer_(layer) {
    const TraceMeta& meta = trace.meta();
    for (const Ledger* ledger : ledgers) {
      measured_.emplace_back(plan, meta.query_heads, layer);
      const std::size_t entries = index(ledger->heads) * index(meta.tokens);
      const auto deaths = std::span(ledger->death).subspan(ledger->offset(layer, 0), entries);
      changes_from_.push_back(static_cast<RowIndex>(*std::ranges::min_element(deaths)));
      first_.push_back(vectors_.size());
      if (changes_from_.back() == meta.tokens) continue;
      vectors_.push_back({deaths, ledger->heads, 0, meta.tokens, plan.output_error});
      for (const Span& span : plan.spans)
        vectors_.push_back({deaths, ledger->heads, span.begin, span.end, false});
    }
    of_spans_ = vectors_.size();
    if (vectors_.empty()) return;
    for (const Span& span : plan.spans)
      vectors_.push_back({{}, meta.kv_heads, span.begin, span.end, false});
  }

  // Rows in which nothing has left yet reach everything.
  void add_unchanged() {
    for (std::size_t p = 0; p < measured_.size(); ++p) {
      for (RowIndex row = 0; row < changes_from_[p]; ++row) {
        if (plan_.measures(row)) measured_[p].add_unchanged(row);
      }
    }
  }

  void measure(ScorePass& pass, const std::function<void()>& check) {
    if (!plan_.measures_layer(layer_)) return;
    std::vector<RowIndex> rows;
    for (RowIndex row = std::ranges::min(changes_from_); row < trace_.meta().tokens; ++row) {
      if (plan_.measures(row)) rows.push_back(row);
    }
    if (rows.empty()) return;
    pass.measure({trace_, layer_, rows, vectors_}, [&](const ScorePiece& piece) {
      check();
      for (std::size_t p = 0; p < measured_.size(); ++p) {
        for (int q = 0; q < piece.query_heads; ++q) {
          if (plan_.measures_head(layer_, q * trace_.meta().kv_heads / piece.query_heads))
            add(piece, p, q);
        }
      }
    });
  }

  std::vector<LayerFidelity> take() { return std::move(measured_); }

 private:
  void add(const ScorePiece& piece, std::size_t p, int query_head) {
    LayerFidelity& to = measured_[p];
    for (std::size_t i = 0; i < piece.rows.size(); ++i) {
      const RowIndex row = piece.rows[i];
      if (row < changes_from_[p]) continue;
      const std::size_t at = piece.at(first_[p], query_head, i);
      to.add_mass(query_head, row, {piece.retained[at], piece.retained[at]});
      if (plan_.output_error) to.add_error(query_head, row, piece.error[at]);
      for (std::size_t s = 0; s < plan_.spans.size(); ++s) {
        if (row < plan_.spans[s].end) continue;
        const double lost = piece.retained[piece.at(of_spans_ + s, query_head, i)] -
                            piece.retained[piece.at(first_[p] + 1 + s, query_head, i)];
        to.add_span_loss(s, row, {std::max(0.0, lost), std::max(0.0, lost)});
      }
    }
  }

  const Trace& trace_;
  const FidelityPlan& plan_;
  int layer_;
  std::vector<LayerFidelity> measured_;
  std::vector<RowIndex> changes_from_;  // [policies] the row of the layer's first death
  std::vector<std::size_t> first_;      // [policies] in vectors_: all entries, then span by span
  std::size_t of_spans_ = 0;            // spans of the full cache, in vectors_
  std::vector<DeathVector> vectors_;
};

}  // namespace

std::vector<LayerFidelity> measure_apart(ScorePass& pass, const Trace& trace,
                                         const FidelityPlan& plan, int layer,
                                         const std::vector<const Ledger*>& ledgers,
                                         const std::function<void()>& check) {
  Measurement measurement(trace, plan, layer, ledgers);
  measurement.add_unchanged();
  measurement.measure(pass, check);
  return measurement.take();
}

}  // namespace kvspan
