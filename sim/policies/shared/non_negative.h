// SPDX-License-Identifier: Apache-2.0
// Least squares without negative numbers, by multiplicative updates.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace kvspan::policies {

using Vector = std::vector<double>;

// to += weight * x
void add_scaled(double weight, const Vector& x, std::span<double> to);

// Sum over rows of row' row, [rank][rank].
[[nodiscard]] std::vector<Vector> gram(const std::vector<Vector>& rows, std::size_t rank);

// argmin over x >= 0 of x G x / 2 - b x. REQUIRES: G, b >= 0.
[[nodiscard]] Vector non_negative(const std::vector<Vector>& gram, const Vector& b);

// Improves phi [rows][rank] and psi [columns][rank] so that phi_i . psi_j comes near columns[j][i].
// REQUIRES: nothing is negative, and neither is empty.
void non_negative_factors(const std::vector<Vector>& columns, std::vector<Vector>& phi,
                          std::vector<Vector>& psi);

}  // namespace kvspan::policies
