// SPDX-License-Identifier: Apache-2.0
// K and V as a policy holds them, where they are no longer the trace's: a store altered them, its
// state stands for victims, or positions are places in the cache. Rows that read them take their
// logits anew, and are compared with the full cache's.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "sim/attention/layer_scores.h"
#include "sim/policy/policy.h"
#include "sim/replay/residency.h"
#include "sim/trace/trace.h"

namespace kvspan {

class HeldVectors {
 public:
  HeldVectors(const Trace& trace, const LayerShape& shape, bool renumbers,
              const Residency& residency);

  // Entries [begin, end) are born: taken over where vectors are copies.
  void add(RowIndex begin, RowIndex end, const LayerScores& scores);
  // What a decision changed; copies the layer's vectors when something first differs.
  void rewrite(const std::vector<Rewrite>& rewrites, const LayerScores& scores);
  // From here on the store adds to the output of every row.
  void absorb() { absorbed_ = true; }
  // Everything is held as it was born.
  [[nodiscard]] bool as_born() const { return panels_.empty() && !absorbed_; }
  // Rows of a stored head cannot be measured with the full cache's terms.
  [[nodiscard]] bool differ(int head) const;

  struct Query {
    int head = 0;
    RowIndex row = 0;
    const RowTerms* full = nullptr;
    const double* full_output = nullptr;  // [v_dim] unnormalised
    float* output = nullptr;              // [v_dim] receives what the row reads, if wanted
  };
  // Rows of the query heads of one stored head that read the same entries, each those that are not
  // behind it and lie in the model's own window.
  struct Rows {
    std::span<const TokenIndex> entries;  // ascending
    std::vector<Query> queries;           // one at least
  };
  struct Error {
    double output = 0;             // relative
    std::optional<double> logits;  // mean distance, nats, weighted by the full probabilities
  };
  // Of every query. `store` may be null unless absorb() was called.
  [[nodiscard]] std::vector<Error> errors(const Rows& rows, const LayerScores& scores,
                                          Store* store) const;

 private:
  // One row of floats for each query.
  using Floats = std::vector<std::vector<float>>;
  [[nodiscard]] Floats vectors(const std::vector<Query>& queries) const;  // [queries][k_dim]
  // Logits of the entries, at their places in `out` [queries][keys].
  void logits(const Rows& rows, const Floats& q, Floats& out) const;
  void moved_logits(const Rows& rows, const Floats& q, const float* panels, Floats& out) const;
  // out [queries][v_dim] of terms = exp(z - max), unnormalised
  [[nodiscard]] std::vector<std::vector<double>> outputs(const Rows& rows, const Floats& terms,
                                                         const LayerScores& scores) const;
  // Terms are relative to `max`.
  struct Held {
    double max = 0, sum = 0;
  };
  // Relative; `output` [v_dim] may be added to.
  [[nodiscard]] double output_error(const Query& query, std::span<const float> q, const Held& held,
                                    Store* store, std::span<double> output) const;

  const Trace& trace_;
  LayerShape shape_;
  bool renumbers_;
  const Residency& residency_;
  std::vector<float> panels_;  // [kv_heads][padded(tokens) / kPanel, k_dim, kPanel]
  std::vector<float> values_;  // [kv_heads][tokens, v_dim]
  std::vector<char> heads_;    // [kv_heads] something differs
  bool absorbed_ = false;
};

}  // namespace kvspan
