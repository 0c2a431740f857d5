// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/expected_attention_rule.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <Eigen/Core>

#include "sim/policies/shared/groups.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {

// Mean and covariance of a layer's queries before rotation.
class QueryMoments {
 public:
  // Queries of the rows from `first` on.
  QueryMoments(const LayerShape& shape, RowIndex first, bool covariance);
  // Adds the queries of the rows since the last call, un-rotated, a block of rows at a time.
  void take_in(const View& view);
  [[nodiscard]] Eigen::VectorXd mean(int query_head) const;
  [[nodiscard]] Eigen::MatrixXd covariance(int query_head) const;

 private:
  // Columns stand at the positions from `first` on. The angles are the same for every head.
  void unrotate(const Rope& rope, RowIndex first, Eigen::MatrixXd& block);
  [[nodiscard]] double count() const { return static_cast<double>(next_row_ - first_row_); }

  std::vector<Eigen::VectorXd> sums_;     // [query_heads] of the rows so far
  std::vector<Eigen::MatrixXd> squares_;  // [query_heads]; empty: no covariance
  RowIndex first_row_, next_row_;         // the next to be taken in
  RowIndex angles_from_ = -1;
  Eigen::MatrixXd cos_, sin_;  // angles of a block, [rope.dim / 2, rows]
};

QueryMoments::QueryMoments(const LayerShape& shape, RowIndex first, bool covariance)
    : sums_(index(shape.query_heads), Eigen::VectorXd::Zero(shape.k_dim)),
      squares_(index(covariance ? shape.query_heads : 0),
               Eigen::MatrixXd::Zero(shape.k_dim, shape.k_dim)),
      first_row_(first),
      next_row_(first) {}

Eigen::VectorXd QueryMoments::mean(int query_head) const {
  const Eigen::VectorXd& sum = sums_[index(query_head)];
  return count() > 0 ? Eigen::VectorXd(sum / count()) : Eigen::VectorXd::Zero(sum.size());
}

Eigen::MatrixXd QueryMoments::covariance(int query_head) const {
  const Eigen::MatrixXd& sum = squares_[index(query_head)];
  if (count() <= 0) return Eigen::MatrixXd::Zero(sum.rows(), sum.cols());
  const Eigen::VectorXd centre = mean(query_head);
  return sum / count() - centre * centre.transpose();
}

void QueryMoments::take_in(const View& view) {
  constexpr RowIndex kBlock = 64;
  const auto dim = static_cast<Eigen::Index>(view.shape().k_dim);
  const auto heads = static_cast<int>(sums_.size());
  for (; next_row_ < view.pass().end; next_row_ = std::min(next_row_ + kBlock, view.pass().end)) {
    const Eigen::Index rows = std::min(kBlock, view.pass().end - next_row_);
    for (int q = 0; q < heads; ++q) {
      Eigen::MatrixXd block(dim, rows);
      for (Eigen::Index r = 0; r < rows; ++r) {
        const std::vector<float> query = view.query(q, next_row_ + r);
        block.col(r) = Eigen::Map<const Eigen::VectorXf>(query.data(), dim).cast<double>();
      }
      if (view.rope() != nullptr) unrotate(*view.rope(), next_row_, block);
      sums_[index(q)] += block.rowwise().sum();
      if (!squares_.empty()) squares_[index(q)].noalias() += block * block.transpose();
    }
  }
}

void QueryMoments::unrotate(const Rope& rope, RowIndex first, Eigen::MatrixXd& block) {
  const Eigen::Index half = rope.dim / 2;
  if (angles_from_ != first || cos_.cols() != block.cols()) {
    angles_from_ = first;
    cos_.resize(half, block.cols());
    sin_.resize(half, block.cols());
    for (Eigen::Index r = 0; r < block.cols(); ++r) {
      for (Eigen::Index i = 0; i < half; ++i) {
        const double angle = static_cast<double>(first + r) * rope.inverse_frequencies[index(i)];
        cos_(i, r) = std::cos(angle);
        sin_(i, r) = std::sin(angle);
      }
    }
  }
  for (Eigen::Index r = 0; r < block.cols(); ++r) {
    for (Eigen::Index i = 0; i < half; ++i) {
      const Eigen::Index a = rope.interleaved ? 2 * i : i;
      const Eigen::Index b = rope.interleaved ? 2 * i + 1 : i + half;
      const double x = block(a, r);
      const double y = block(b, r);
      block(a, r) = x * cos_(i, r) + y * sin_(i, r);
      block(b, r) = y * cos_(i, r) - x * sin_(i, r);
    }
  }
}

namespace {

// Mean over the next `positions` from `from` on of the rotation, a block of 2 x 2 per frequency.
Eigen::MatrixXd mean_rotation(const Rope& rope, RowIndex from, std::int64_t positions,
                              Eigen::Index dim) {
  const auto count = static_cast<double>(positions);
  Eigen::MatrixXd out = Eigen::MatrixXd::Identity(dim, dim);
  for (int i = 0; i < rope.dim / 2; ++i) {
    double c = 0;
    double s = 0;
    for (std::int64_t t = 0; t < positions; ++t) {
      const double angle = static_cast<double>(from + t) * rope.inverse_frequencies[index(i)];
      c += std::cos(angle);
      s += std::sin(angle);
    }
    const int a = rope.interleaved ? 2 * i : i;
    const int b = rope.interleaved ? 2 * i + 1 : i + rope.dim / 2;
    out(a, a) = out(b, b) = c / count;
    out(b, a) = s / count;
    out(a, b) = -s / count;
  }
  return out;
}

}  // namespace

struct MeanFutureQuery::State {
  QueryMoments moments;
  std::int64_t future = 0;
  RowIndex turn_from = -1;
  Eigen::MatrixXd turn = {};  // the mean rotation
};

MeanFutureQuery::MeanFutureQuery(const LayerShape& shape, RowIndex first, std::int64_t future)
    : state_(std::make_unique<State>(State{QueryMoments(shape, first, false), future})) {}

MeanFutureQuery::~MeanFutureQuery() = default;

std::vector<double> MeanFutureQuery::of(const View& view, int query_head) {
  state_->moments.take_in(view);
  Eigen::VectorXd mean = state_->moments.mean(query_head);
  if (view.rope() != nullptr) {
    if (state_->turn_from != view.pass().end) {
      state_->turn_from = view.pass().end;
      state_->turn = mean_rotation(*view.rope(), state_->turn_from, state_->future, mean.size());
    }
    mean = state_->turn * mean;
  }
  return {mean.data(), mean.data() + mean.size()};
}

struct Expected::State {
  QueryMoments moments;
  SquaredNorms value_norms{Vectors::values};
  RowIndex turn_from = -1;
  Eigen::MatrixXd turn = {};  // the mean rotation
  // Softmax over the candidates of the expected logits of one query head.
  void expect(const View& view, const Settings& settings, int q, const Eigen::MatrixXd& keys,
              std::span<double> weights);
};

Expected::Expected(const Settings& settings, const LayerShape& shape)
    : settings_(settings),
      state_(std::make_unique<State>(
          State{QueryMoments(shape, settings.sinks, settings.covariance)})) {}

Expected::~Expected() = default;

double Expected::score(const View& view, int head, std::span<const TokenIndex> entries,
                       std::span<double> out) {
  const LayerShape& shape = view.shape();
  const int kv_head = shape.kv_head(head);
  const auto count = static_cast<Eigen::Index>(entries.size());
  const std::vector<float> k = vectors_of(view, Vectors::keys, kv_head, entries);
  const Eigen::MatrixXd keys =
      Eigen::Map<const Eigen::MatrixXf>(k.data(), shape.k_dim, count).cast<double>();
  reduce_group(shape, head, Group::mean, out, [&](int q, std::span<double> weights) {
    state_->expect(view, settings_, q, keys, weights);
    return 0.0;
  });
  for (double& score : out) score += settings_.epsilon;
  if (settings_.by_value) {
    const std::vector<double> squared = state_->value_norms.of(view, kv_head, entries);
    for (std::size_t i = 0; i < entries.size(); ++i) out[i] *= std::sqrt(squared[i]);
  }
  round_sums(out);
  return 0;
}

void Expected::State::expect(const View& view, const Settings& settings, int q,
                             const Eigen::MatrixXd& keys, std::span<double> weights) {
  moments.take_in(view);
  const double scale = view.score_scale();
  Eigen::VectorXd mean = moments.mean(q);
  Eigen::MatrixXd covariance;
  if (settings.covariance) covariance = moments.covariance(q);
  if (view.rope() != nullptr) {
    if (turn_from != view.pass().end) {
      turn_from = view.pass().end;
      turn = mean_rotation(*view.rope(), turn_from, settings.future, keys.rows());
    }
    mean = turn * mean;
    if (settings.covariance) covariance = turn * covariance * turn.transpose();
  }
  Eigen::VectorXd logits = scale * (keys.transpose() * mean);
  if (settings.covariance) {
    // Key by key: Eigen's product of all keys sums the last ones in another order, and equal keys
    // would differ in the last bits.
    Eigen::MatrixXd product(keys.rows(), keys.cols());
    for (Eigen::Index i = 0; i < keys.cols(); ++i)
      product.col(i).noalias() = covariance * keys.col(i);
    logits += scale * scale / 2 * keys.cwiseProduct(product).colwise().sum().transpose();
  }
  const double most = logits.maxCoeff();
  double sum = 0;
  for (std::size_t i = 0; i < weights.size(); ++i)
    sum += weights[i] = std::exp(logits[static_cast<Eigen::Index>(i)] - most);
  for (double& w : weights) w /= sum;
}

}  // namespace kvspan::policies
