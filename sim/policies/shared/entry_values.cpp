// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/shared/entry_values.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <Eigen/Core>

namespace kvspan::policies {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

HeadValues largest_future(const Trace& trace, int layer, RowIndex gap, RowIndex begin,
                          RowIndex end) {
  const TraceMeta& m = trace.meta();
  HeadValues out(index(m.kv_heads), std::vector<float>(index(end), 0.0F));
  const int group = m.query_heads / m.kv_heads;
  for_each_row(trace, layer, std::min(end, std::max(gap, begin)), end,
               [&](int q, RowIndex row, const RowTerms& terms) {
                 auto& best = out[index(q / group)];
                 const double sum = terms.sum + terms.sink;
                 if (!(sum > 0)) return;
                 const auto scale = static_cast<float>(1 / sum);
                 for (RowIndex i = 0; i <= row - gap; ++i)
                   best[index(i)] = std::max(best[index(i)], terms.terms[i] * scale);
               });
  return out;
}

HeadValues output_change(const Trace& trace, int layer, RowIndex window) {
  const TraceMeta& m = trace.meta();
  const LayerVectors v = read_vectors(trace, layer, 'v', 0, m.tokens);
  const auto dim = static_cast<Eigen::Index>(m.v_head_dim);
  std::vector<Matrix> values(index(m.kv_heads));
  std::vector<Eigen::VectorXd> norms;
  for (int h = 0; h < m.kv_heads; ++h) {
    Matrix& of_head = values[index(h)];
    of_head.resize(m.tokens, dim);
    for (RowIndex i = 0; i < m.tokens; ++i) {
      for (Eigen::Index d = 0; d < dim; ++d)
        of_head(i, d) = static_cast<double>(v.at(i, h)[index(d)]);
    }
    norms.emplace_back(of_head.rowwise().squaredNorm());
  }
  std::vector<Eigen::ArrayXd> change(index(m.kv_heads), Eigen::ArrayXd::Zero(m.tokens));
  const int group = m.query_heads / m.kv_heads;
  for_each_row(trace, layer, std::min(window, m.tokens), m.tokens,
               [&](int q, RowIndex row, const RowTerms& terms) {
                 const std::size_t h = index(q / group);
                 const double sum = terms.sum + terms.sink;
                 if (!(sum > 0)) return;
                 const Eigen::VectorXd a =
                     Eigen::Map<const Eigen::VectorXf>(terms.terms, row + 1).cast<double>() / sum;
                 const Eigen::RowVectorXd o = a.transpose() * values[h].topRows(row + 1);
                 const RowIndex n = row - window + 1;
                 const Eigen::ArrayXd distance = norms[h].head(n).array() + o.squaredNorm() -
                                                 2 * (values[h].topRows(n) * o.transpose()).array();
                 const Eigen::ArrayXd p = a.head(n).array();
                 change[h].head(n) += (p / (1 - p).max(1e-6)).square() * distance.max(0.0);
               });
  HeadValues out;
  for (const Eigen::ArrayXd& c : change) {
    out.emplace_back();
    for (RowIndex i = 0; i < m.tokens; ++i) {
      const double free =
          1 - std::min(1.0, static_cast<double>(window) / static_cast<double>(m.tokens - i));
      out.back().push_back(free > 0 ? static_cast<float>(c(i) / free) : 0.0F);
    }
  }
  return out;
}

HeadValues expected_attention(const Trace& trace, int layer, RowIndex prompt,
                              std::ptrdiff_t outside) {
  const TraceMeta& m = trace.meta();
  const auto dim = static_cast<Eigen::Index>(m.head_dim);
  const RowIndex half = std::max<RowIndex>(1, prompt / 2);
  const RowIndex first = half > kAdaSinks ? kAdaSinks : 0;
  const LayerVectors q = read_vectors(trace, layer, 'q', first, half, true);
  const LayerVectors k = read_vectors(trace, layer, 'k', 0, m.tokens);
  const double position = static_cast<double>(prompt) / 2;
  const auto turn = [&](Matrix& rows) {
    if (!m.rope) return;
    std::vector<float> row(index(dim));
    for (Eigen::Index r = 0; r < rows.rows(); ++r) {
      for (Eigen::Index d = 0; d < dim; ++d) row[index(d)] = static_cast<float>(rows(r, d));
      rotate(*m.rope, position, row);
      for (Eigen::Index d = 0; d < dim; ++d) rows(r, d) = static_cast<double>(row[index(d)]);
    }
  };
  const int group = m.query_heads / m.kv_heads;
  HeadValues out(index(m.kv_heads), std::vector<float>(index(m.tokens), 0.0F));
  for (int head = 0; head < m.query_heads; ++head) {
    // Rotating every query is rotating mean and covariance.
    Matrix x(half - first, dim);
    for (RowIndex r = first; r < half; ++r) {
      for (Eigen::Index d = 0; d < dim; ++d)
        x(r - first, d) = static_cast<double>(q.at(r, head)[index(d)]);
    }
    turn(x);
    const Eigen::RowVectorXd mean = x.colwise().mean();
    x.rowwise() -= mean;
    const double scale = m.score_scale;
    std::vector<float> score;
    for (RowIndex i = 0; i < m.tokens; ++i) {
      const auto key = k.at(i, head / group);
      const Eigen::VectorXd kd = Eigen::Map<const Eigen::VectorXf>(key.data(), dim).cast<double>();
      const double variance = (x * kd).squaredNorm() / static_cast<double>(x.rows());
      score.push_back(static_cast<float>(mean.dot(kd) * scale + variance * scale * scale / 2));
    }
    std::vector<float> sorted(score.begin(), score.begin() + outside);
    std::sort(sorted.begin(), sorted.end());
    auto& best = out[index(head / group)];
    for (std::size_t i = 0; i < score.size(); ++i) {
      const auto below = std::upper_bound(sorted.begin(), sorted.end(), score[i]) - sorted.begin();
      best[i] = std::max(best[i], static_cast<float>(static_cast<double>(below) /
                                                     static_cast<double>(sorted.size())));
    }
  }
  for (auto& head : out) {
    std::fill(head.begin(), head.begin() + std::min<TokenCount>(kAdaSinks, m.tokens), kInfinity);
  }
  return out;
}

}  // namespace kvspan::policies
