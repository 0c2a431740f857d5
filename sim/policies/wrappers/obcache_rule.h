// SPDX-License-Identifier: Apache-2.0
// What a row of attention would lose, to second order, if one entry's value, key, or both were
// zeroed; and a scorer that adds this up where it would have added up the row's probabilities.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

enum class Zeroed : std::uint8_t { value, key, both };

class Perturbations final : public Scorer {
 public:
  Perturbations(std::unique_ptr<Scorer> inner, Zeroed zeroed, const LayerShape& shape);
  Needs needs() const override;
  void observe(const View& view, RowIndex begin, RowIndex end) override;
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

  // Of one row of one query head; out [entries], 0 for what the row does not read.
  void of_row(const View& view, int query_head, RowIndex row, std::span<const TokenIndex> entries,
              std::span<double> out) const;
  // Summed over all rows so far, where the policy asks for column sums.
  [[nodiscard]] double sum(int query_head, TokenIndex token) const {
    return sums_[index(query_head)][index(token)];
  }

 private:
  void take_in(const View& view);
  std::unique_ptr<Scorer> inner_;
  Zeroed zeroed_;
  std::vector<std::vector<float>> values_;  // [kv_heads][tokens so far * v_dim]
  std::vector<std::vector<double>> sums_;   // [query_heads][tokens so far]
};

}  // namespace kvspan::policies
