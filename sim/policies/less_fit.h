// SPDX-License-Identifier: Apache-2.0
// LESS's state as a factorisation that is fitted to attention: what stands in for trained kernels.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sim/policies/less_rule.h"
#include "sim/policies/shared/non_negative.h"

namespace kvspan::policies {

// A non-negative factorisation Phi [rows, R] Psi [R, victims] of the attention that rows give to
// the victims, found by multiplicative updates over some rows. phi of other rows: with `future`,
// what fits the row best; else exp(s_r z(q, a_r) + b_r), a_r the mean key under psi_r, s_r and b_r
// fitted to Phi.
class Factors final : public VictimState {
 public:
  Factors(int head, double scale, int rank, const View& view, const std::vector<RowIndex>& rows,
          bool future, std::uint64_t seed);
  void absorb(const View& view, std::span<const TokenIndex> victims) override;
  void add(std::span<const float> q, double max, std::span<double> numerator,
           double& denominator) const override;

 private:
  [[nodiscard]] Vector fitted_phi(std::span<const float> q, double max) const;
  [[nodiscard]] Vector best_phi(std::span<const float> q, double max) const;
  // Least squares of log Phi = s_r z(q, a_r) + b_r; a row weighs what it gives to the feature.
  void fit_lines();
  void factorise(const std::vector<Vector>& columns);
  [[nodiscard]] Vector fit_column(const Vector& column) const;
  // Adds the victims from `first` on to what add() reads.
  void summarise(std::size_t first, const std::vector<std::vector<float>>& values);

  int head_;
  double scale_;
  std::size_t rank_;
  bool future_;
  std::uint64_t seed_;
  std::vector<std::vector<float>> queries_, keys_;
  Vector row_log_sum_;
  std::vector<std::vector<float>> anchors_;  // [R]
  Vector slope_, shift_;                     // [R]
  std::vector<Vector> phi_, psi_;            // [rows][R], [victims][R]
  std::vector<Vector> gram_phi_, gram_psi_;  // [R][R]
  Vector weight_;                            // [R] sums of psi
  std::vector<Vector> value_;                // [R][v_dim] sums of psi v
};

}  // namespace kvspan::policies
