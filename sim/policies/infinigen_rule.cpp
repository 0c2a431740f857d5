// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/infinigen_rule.h"

#include <algorithm>

#include <Eigen/Core>
#include <Eigen/Eigenvalues>

#include "sim/policies/shared/pages.h"

namespace kvspan::policies {

PartialKeys::PartialKeys(const View& view, int kv_head, RowIndex prompt, int columns)
    : kv_head_(kv_head), dim_(view.shape().k_dim) {
  constexpr RowIndex kPiece = 512;  // rows at a time
  const int group = view.shape().query_heads / view.shape().kv_heads;
  const auto queries = [&](RowIndex begin) {
    const RowIndex end = std::min(begin + kPiece, prompt);
    Eigen::MatrixXd out((end - begin) * group, dim_);
    for (RowIndex row = begin; row < end; ++row) {
      for (int g = 0; g < group; ++g) {
        const std::vector<float> q = view.query(kv_head * group + g, row);
        for (int i = 0; i < dim_; ++i)
          out((row - begin) * group + g, i) = static_cast<double>(q[index(i)]);
      }
    }
    return out;
  };
  Eigen::MatrixXd gram = Eigen::MatrixXd::Zero(dim_, dim_);
  for (RowIndex row = 0; row < prompt; row += kPiece) {
    const Eigen::MatrixXd q = queries(row);
    gram.noalias() += q.transpose() * q;
  }
  // Right singular vectors of Q are eigenvectors of its Gram matrix.
  const Eigen::MatrixXd skew = Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(gram).eigenvectors();
  Eigen::VectorXd weight = Eigen::VectorXd::Zero(dim_);
  for (RowIndex row = 0; row < prompt; row += kPiece)
    weight += (queries(row) * skew).cwiseAbs().colwise().sum().transpose();
  std::vector<float> sums(index(dim_));
  for (int i = 0; i < dim_; ++i) sums[index(i)] = static_cast<float>(weight(i));
  const std::vector<std::int32_t> best = best_of(sums, index(columns));
  for (const std::int32_t c : best) {
    for (int i = 0; i < dim_; ++i) skew_.push_back(static_cast<float>(skew(i, c)));
  }
  columns_.resize(best.size());
}

void PartialKeys::extend(const View& view, TokenIndex end) {
  for (; tokens_ < end; ++tokens_) {
    const std::vector<float> key = view.key(kv_head_, tokens_);
    for (std::size_t c = 0; c < columns_.size(); ++c) columns_[c].push_back(turn(c, key.data()));
  }
}

void PartialKeys::score(std::span<const float> q, double scale, std::span<const TokenIndex> entries,
                        std::span<double> out) const {
  std::vector<float> sums(columns_.empty() ? 0 : columns_[0].size(), 0.0F);
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    const float x = turn(c, q.data());
    const float* column = columns_[c].data();
    for (std::size_t t = 0; t < sums.size(); ++t) sums[t] += x * column[t];
  }
  for (std::size_t i = 0; i < entries.size(); ++i)
    out[i] = scale * static_cast<double>(sums[index(entries[i])]);
}

float PartialKeys::turn(std::size_t column, const float* x) const {
  const float* a = skew_.data() + column * index(dim_);
  float sum = 0;
  for (std::size_t i = 0; i < index(dim_); ++i) sum += a[i] * x[i];
  return sum;
}

}  // namespace kvspan::policies
