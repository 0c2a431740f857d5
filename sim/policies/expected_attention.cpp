// SPDX-License-Identifier: Apache-2.0
// Expected attention: treats the coming queries of a head as normally distributed, with the mean and
// covariance of the prompt's queries before rotation, rotated to the average of the next `future`
// positions. The expected weight of key j is exp(a mu.k + a^2/2 k'Sigma k), normalised over the
// candidates; mean over the group, plus epsilon, times ||v||.
// Source: Devoto et al., arXiv 2510.00636; kvpress ExpectedAttentionPress, whose defaults these are.
// Queries before rotation are not in a trace: they are rotated back. A trace that says nothing about
// rotation is taken as it is, and a note says so. Logit soft-capping is not modelled, as there.
#include <algorithm>
#include <cmath>

#include <Eigen/Core>

#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/whole_trace.h"

namespace kvspan::policies {
namespace {

struct Settings {
  TokenCount sinks = 4;
  std::int64_t future = 512;
  bool covariance = true;
  bool by_value = true;
  double epsilon = 0;
};

class Expected final : public Scorer {
 public:
  Expected(const Settings& settings, const LayerShape& shape)
      : settings_(settings),
        sums_(index(shape.query_heads), Eigen::VectorXd::Zero(shape.k_dim)),
        squares_(index(settings.covariance ? shape.query_heads : 0),
                 Eigen::MatrixXd::Zero(shape.k_dim, shape.k_dim)),
        next_row_(settings.sinks) {}
  Needs needs() const override { return {.q = true, .k = true, .v = settings_.by_value}; }

  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const LayerShape& shape = view.shape();
    const int kv_head = shape.kv_head(head);
    const auto count = static_cast<Eigen::Index>(entries.size());
    Eigen::MatrixXd keys(shape.k_dim, count);
    for (Eigen::Index i = 0; i < count; ++i) {
      const std::vector<float> k = view.key(kv_head, entries[index(i)]);
      for (int d = 0; d < shape.k_dim; ++d) keys(d, i) = static_cast<double>(k[index(d)]);
    }
    reduce_group(shape, head, Group::mean, out, [&](int q, std::span<double> weights) {
      expect(view, q, keys, weights);
      return 0.0;
    });
    for (std::size_t i = 0; i < entries.size(); ++i) {
      out[i] += settings_.epsilon;
      if (settings_.by_value) out[i] *= std::sqrt(squared_norm(view.value(kv_head, entries[i])));
    }
    round_sums(out);
    return 0;
  }

 private:
  // Softmax over the candidates of the expected logits of one query head.
  void expect(const View& view, int q, const Eigen::MatrixXd& keys, std::span<double> weights) {
    take_in(view);
    const double scale = view.score_scale();
    const double n = static_cast<double>(next_row_ - settings_.sinks);
    Eigen::VectorXd mean = Eigen::VectorXd::Zero(keys.rows());
    Eigen::MatrixXd covariance;
    if (n > 0) mean = sums_[index(q)] / n;
    if (settings_.covariance) {
      covariance = Eigen::MatrixXd::Zero(keys.rows(), keys.rows());
      if (n > 0) covariance = squares_[index(q)] / n - mean * mean.transpose();
    }
    if (view.rope() != nullptr) {
      if (turn_from_ != view.pass().end) {
        turn_from_ = view.pass().end;
        turn_ = mean_rotation(*view.rope(), turn_from_, keys.rows());
      }
      const Eigen::MatrixXd& turn = turn_;
      mean = turn * mean;
      if (settings_.covariance) covariance = turn * covariance * turn.transpose();
    }
    Eigen::VectorXd logits = scale * (keys.transpose() * mean);
    if (settings_.covariance) {
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

  // Adds the queries of the rows since the last decision, un-rotated, a block of rows at a time.
  void take_in(const View& view) {
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
        if (settings_.covariance) squares_[index(q)].noalias() += block * block.transpose();
      }
    }
  }

  // Columns stand at the positions from `first` on. The angles are the same for every head.
  void unrotate(const Rope& rope, RowIndex first, Eigen::MatrixXd& block) {
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

  // Mean over the next `future` positions of the rotation, a block of 2 x 2 per frequency.
  Eigen::MatrixXd mean_rotation(const Rope& rope, RowIndex from, Eigen::Index dim) const {
    Eigen::MatrixXd out = Eigen::MatrixXd::Identity(dim, dim);
    for (int i = 0; i < rope.dim / 2; ++i) {
      double c = 0;
      double s = 0;
      for (std::int64_t t = 0; t < settings_.future; ++t) {
        const double angle = static_cast<double>(from + t) * rope.inverse_frequencies[index(i)];
        c += std::cos(angle);
        s += std::sin(angle);
      }
      const int a = rope.interleaved ? 2 * i : i;
      const int b = rope.interleaved ? 2 * i + 1 : i + rope.dim / 2;
      const auto positions = static_cast<double>(settings_.future);
      out(a, a) = out(b, b) = c / positions;
      out(b, a) = s / positions;
      out(a, b) = -s / positions;
    }
    return out;
  }

  Settings settings_;
  std::vector<Eigen::VectorXd> sums_;     // [query_heads] of the rows so far, behind the sinks
  std::vector<Eigen::MatrixXd> squares_;  // [query_heads]
  RowIndex next_row_;                     // to be taken in
  RowIndex turn_from_ = -1, angles_from_ = -1;
  Eigen::MatrixXd turn_, cos_, sin_;  // the mean rotation; angles of a block, [rope.dim / 2, rows]
};

}  // namespace

PolicyEntry expected_attention() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "expected_attention";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps what queries like the prompt's are expected to attend to later";
  entry.source = "Devoto et al. 2025, arXiv 2510.00636; code NVIDIA/kvpress";
  entry.evidence = "code read";
  entry.needs = "q, k and v; the rope_* fields where the model rotates q and k";
  entry.parameters = {
      budget_parameter(),
      {.name = "sinks", .fallback = "4", .unit = "tokens", .help = "first tokens, always kept"},
      {.name = "future",
       .fallback = "512",
       .unit = "rows",
       .help = "coming positions that are averaged",
       .range = {1, 1e6}},
      {.name = "covariance",
       .kind = Kind::flag,
       .fallback = "true",
       .help = "uses the second moment"},
      {.name = "vnorm",
       .kind = Kind::flag,
       .fallback = "true",
       .help = "times the norm of the value"},
      {.name = "epsilon",
       .kind = Kind::real,
       .fallback = "0",
       .help = "added before that product",
       .range = {0, 1e6}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const Settings settings{arguments.count("sinks"), arguments.count("future"),
                            arguments.flag("covariance"), arguments.flag("vnorm"),
                            arguments.real("epsilon")};
    Scoring scoring;
    scoring.make = [settings](const LayerShape& shape) {
      return std::make_unique<Expected>(settings, shape);
    };
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    recipe.protect = own(ProtectRule([sinks = settings.sinks](TokenCount) {
      return Protect{sinks, 0};
    }));
    // Mean and covariance in fp32 of every query head, while the prompt's end is decided.
    const std::int64_t d = geometry.k_dim;
    const std::int64_t moments = std::int64_t{geometry.layers()} * geometry.query_heads *
                                 (d + (settings.covariance ? d * d : 0)) * 4;
    recipe.charge.during = [moments, last = geometry.evict_at - 1](RowIndex row) {
      return row == last ? moments : 0;
    };
    if (geometry.trace != nullptr && geometry.trace->is_qkv() && !geometry.trace->meta().rope)
      recipe.notes.emplace_back("the trace has no rope_* fields: queries are taken as unrotated");
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
