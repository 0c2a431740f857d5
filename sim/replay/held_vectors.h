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

  // What a decision changed; copies the layer's vectors when something first differs.
  void rewrite(const std::vector<Rewrite>& rewrites, const LayerScores& scores);
  // From here on the store adds to the output of every row.
  void absorb() { absorbed_ = true; }
  // Everything is held as it was born.
  [[nodiscard]] bool as_born() const { return panels_.empty() && !absorbed_; }
  // Rows of a stored head cannot be measured with the full cache's terms.
  [[nodiscard]] bool differ(int head) const;

  struct Row {
    int query_head = 0;
    RowIndex row = 0;
    std::span<const TokenIndex> entries;  // that it reads, ascending
    const RowTerms* full = nullptr;
    const double* full_output = nullptr;  // [v_dim] unnormalised
  };
  struct Error {
    double output = 0;             // relative
    std::optional<double> logits;  // mean distance, nats, weighted by the full probabilities
  };
  // `store` may be null unless absorb() was called.
  [[nodiscard]] Error error(const Row& row, const LayerScores& scores, Store* store) const;

 private:
  [[nodiscard]] std::vector<float> query(const Row& row) const;
  // Logits of the row's entries, at their places in a row of keys.
  void logits(const Row& row, const std::vector<float>& q, std::vector<float>& out) const;
  [[nodiscard]] double output_error(const Row& row, std::span<const float> q,
                                    const std::vector<float>& terms, double max,
                                    const LayerScores& scores, Store* store) const;

  const Trace& trace_;
  LayerShape shape_;
  bool renumbers_;
  const Residency& residency_;
  std::vector<float> panels_;  // [kv_heads][padded(tokens) / kPanel, k_dim, kPanel]
  std::vector<float> values_;  // [tokens, kv_heads, v_dim]
  std::vector<char> heads_;    // [kv_heads] something differs
  bool absorbed_ = false;
};

}  // namespace kvspan
