// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/non_negative.h"

namespace kvspan::policies {
namespace {

// One round of multiplicative updates of x towards G x = b, all components at once.
void update(Vector& x, const std::vector<Vector>& gram, const Vector& b) {
  Vector now(x.size(), 0.0);
  for (std::size_t r = 0; r < x.size(); ++r) {
    for (std::size_t s = 0; s < x.size(); ++s) now[r] += gram[r][s] * x[s];
  }
  for (std::size_t r = 0; r < x.size(); ++r) {
    if (now[r] > 0) x[r] *= b[r] / now[r];
  }
}

}  // namespace

void add_scaled(double weight, const Vector& x, std::span<double> to) {
  for (std::size_t i = 0; i < x.size(); ++i) to[i] += weight * x[i];
}

std::vector<Vector> gram(const std::vector<Vector>& rows, std::size_t rank) {
  std::vector<Vector> out(rank, Vector(rank, 0.0));
  for (const Vector& row : rows) {
    for (std::size_t r = 0; r < rank; ++r) add_scaled(row[r], row, out[r]);
  }
  return out;
}

Vector non_negative(const std::vector<Vector>& gram, const Vector& b) {
  Vector x(b.size(), 1.0);
  for (int round = 0; round < 60; ++round) {
    for (std::size_t r = 0; r < x.size(); ++r) {
      double now = 0;
      for (std::size_t s = 0; s < x.size(); ++s) now += gram[r][s] * x[s];
      if (now > 0) x[r] *= b[r] / now;
    }
  }
  return x;
}

void non_negative_factors(const std::vector<Vector>& columns, std::vector<Vector>& phi,
                          std::vector<Vector>& psi) {
  const std::size_t rank = phi.front().size();
  for (int round = 0; round < 40; ++round) {
    const std::vector<Vector> of_phi = gram(phi, rank);
    std::vector<Vector> for_phi(phi.size(), Vector(rank, 0.0));
    for (std::size_t j = 0; j < psi.size(); ++j) {
      Vector b(rank, 0.0);
      for (std::size_t i = 0; i < phi.size(); ++i) add_scaled(columns[j][i], phi[i], b);
      update(psi[j], of_phi, b);
      for (std::size_t i = 0; i < phi.size(); ++i) add_scaled(columns[j][i], psi[j], for_phi[i]);
    }
    const std::vector<Vector> of_psi = gram(psi, rank);
    for (std::size_t i = 0; i < phi.size(); ++i) update(phi[i], of_psi, for_phi[i]);
  }
}

}  // namespace kvspan::policies
