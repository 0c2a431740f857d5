// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/less_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "sim/base/random.h"
#include "sim/policies/shared/groups.h"
#include "sim/policies/shared/non_negative.h"

namespace kvspan::policies {
namespace {

// Weighted sums of a straight line's points.
struct Line {
  double w = 0, x = 0, y = 0, xx = 0, xy = 0;
  void add(double weight, double at, double value) {
    w += weight;
    x += weight * at;
    y += weight * value;
    xx += weight * at * at;
    xy += weight * at * value;
  }
  [[nodiscard]] double slope() const {
    const double spread = xx * w - x * x;
    return spread > 1e-9 * xx * w ? std::clamp((xy * w - x * y) / spread, 0.0, 2.0) : 1.0;
  }
};

}  // namespace

Factors::Factors(int head, double scale, int rank, const View& view,
                 const std::vector<RowIndex>& rows, bool future, std::uint64_t seed)
    : head_(head), scale_(scale), rank_(index(rank)), future_(future), seed_(seed) {
  const int group = view.shape().group();
  std::vector<std::vector<float>> keys;
  for (TokenIndex t = 0; t <= rows.back(); ++t) keys.push_back(view.key(head, t));
  for (const RowIndex row : rows) {
    for (int g = 0; g < group; ++g) {
      queries_.push_back(view.query(head * group + g, row));
      Vector z;
      for (RowIndex t = 0; t <= row; ++t)
        z.push_back(scale_ * dot(queries_.back(), keys[index(t)]));
      const double max = *std::max_element(z.begin(), z.end());
      double sum = 0;
      for (const double x : z) sum += std::exp(x - max);
      row_log_sum_.push_back(max + std::log(sum));
    }
  }
}

void Factors::absorb(const View& view, std::span<const TokenIndex> victims) {
  const std::size_t first = psi_.size();
  std::vector<Vector> columns;             // [victims][rows]
  std::vector<std::vector<float>> values;  // [victims][v_dim]
  for (const TokenIndex t : victims) {
    keys_.push_back(view.key(head_, t));
    values.push_back(view.value(head_, t));
    columns.emplace_back();
    for (std::size_t i = 0; i < queries_.size(); ++i)
      columns.back().push_back(std::exp(scale_ * dot(queries_[i], keys_.back()) - row_log_sum_[i]));
  }
  if (phi_.empty()) {
    factorise(columns);
  } else {
    for (const Vector& column : columns) psi_.push_back(fit_column(column));
  }
  summarise(first, values);
  if (future_) return;
  if (slope_.empty()) fit_lines();
  keys_.clear();
}

void Factors::add(std::span<const float> q, double max, std::span<double> numerator,
                  double& denominator) const {
  const Vector phi = future_ ? best_phi(q, max) : fitted_phi(q, max);
  for (std::size_t r = 0; r < rank_; ++r) {
    denominator += phi[r] * weight_[r];
    add_scaled(phi[r], value_[r], numerator);
  }
}

Vector Factors::fitted_phi(std::span<const float> q, double max) const {
  Vector phi;
  for (std::size_t r = 0; r < rank_; ++r) {
    const double z = scale_ * dot(q, anchors_[r]);
    phi.push_back(bounded_exp(slope_[r] * z + shift_[r] - max));
  }
  return phi;
}

Vector Factors::best_phi(std::span<const float> q, double max) const {
  Vector z;
  for (const std::vector<float>& key : keys_) z.push_back(scale_ * dot(q, key));
  const double own_max = *std::max_element(z.begin(), z.end());
  Vector b(rank_, 0.0);  // Psi a
  for (std::size_t j = 0; j < z.size(); ++j) {
    add_scaled(std::exp(z[j] - own_max), psi_[j], b);
  }
  Vector phi = non_negative(gram_psi_, b);
  for (double& x : phi) x *= bounded_exp(own_max - max);
  return phi;
}

void Factors::fit_lines() {
  const auto dim = keys_[0].size();
  for (std::size_t r = 0; r < rank_; ++r) {
    Vector sum(dim, 0.0);
    for (std::size_t j = 0; j < psi_.size(); ++j) {
      for (std::size_t c = 0; c < dim; ++c) sum[c] += psi_[j][r] * static_cast<double>(keys_[j][c]);
    }
    anchors_.emplace_back(dim, 0.0F);
    for (std::size_t c = 0; c < dim && weight_[r] > 0; ++c)
      anchors_.back()[c] = static_cast<float>(sum[c] / weight_[r]);
    Line line;
    for (std::size_t i = 0; i < phi_.size(); ++i) {
      if (phi_[i][r] <= 0) continue;
      line.add(phi_[i][r], scale_ * dot(queries_[i], anchors_[r]),
               std::log(phi_[i][r]) + row_log_sum_[i]);
    }
    slope_.push_back(line.w > 0 ? line.slope() : 0.0);
    shift_.push_back(line.w > 0 ? (line.y - slope_[r] * line.x) / line.w
                                : -std::numeric_limits<double>::infinity());
  }
}

Vector Factors::fit_column(const Vector& column) const {
  Vector b(rank_, 0.0);
  for (std::size_t i = 0; i < column.size(); ++i) add_scaled(column[i], phi_[i], b);
  return non_negative(gram_phi_, b);
}

void Factors::factorise(const std::vector<Vector>& columns) {
  const auto start = [&](std::int64_t side, std::size_t count) {
    std::vector<Vector> rows(count, Vector(rank_));
    for (std::size_t i = 0; i < count * rank_; ++i) {
      const auto row = static_cast<std::int64_t>(i / rank_);
      const auto r = static_cast<std::int64_t>(i % rank_);
      rows[i / rank_][i % rank_] = 0.1 + uniform(seed_, {side, head_, row, r});
    }
    return rows;
  };
  phi_ = start(0, queries_.size());
  psi_ = start(1, columns.size());
  non_negative_factors(columns, phi_, psi_);
  gram_phi_ = gram(phi_, rank_);
}

void Factors::summarise(std::size_t first, const std::vector<std::vector<float>>& values) {
  if (first == 0) {
    gram_psi_.assign(rank_, Vector(rank_, 0.0));
    weight_.assign(rank_, 0.0);
    value_.assign(rank_, Vector(values[0].size(), 0.0));
  }
  for (std::size_t j = first; j < psi_.size(); ++j) {
    for (std::size_t r = 0; r < rank_; ++r) {
      weight_[r] += psi_[j][r];
      if (future_) add_scaled(psi_[j][r], psi_[j], gram_psi_[r]);
      for (std::size_t c = 0; c < value_[r].size(); ++c)
        value_[r][c] += psi_[j][r] * static_cast<double>(values[j - first][c]);
    }
  }
}

}  // namespace kvspan::policies
