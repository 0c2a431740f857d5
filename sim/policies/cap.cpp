// SPDX-License-Identifier: Apache-2.0
// CapKV: keeps entries that add most to what the values of a head can say, where entries count by
// how they lie to the queries to come:
//   w = exp(tau (cos(k, m) - the largest cos)),  A = I + sum (w + 1e-6) v v',  score = w v' A^-1 v
// of every query head, mean of the group. m is the mean of the prompt's queries before rotation
// (but for the sinks'), turned to the average of the next `future` positions. The first `sinks`
// stay.
// Source: arXiv 2604.25975; kvpress CapPress, whose defaults these are (the paper
// does not normalise k and m, and does not turn m).
#include <algorithm>
#include <cmath>

#include <Eigen/Cholesky>

#include "sim/policies/expected_attention_rule.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/kernels.h"

namespace kvspan::policies {
namespace {

class Capacity final : public Scorer {
 public:
  Capacity(const LayerShape& shape, TokenCount sinks, std::int64_t future, double tau)
      : anchors_(shape, sinks, future), tau_(tau) {}
  Needs needs() const override { return {.q = true, .k = true, .v = true}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const LayerShape& shape = view.shape();
    const int kv_head = shape.kv_head(head);
    const std::vector<float> keys = vectors_of(view, Vectors::keys, kv_head, entries);
    std::vector<double> lengths(entries.size());
    kernels::squared_norms(keys.data(), std::ssize(entries), shape.k_dim, shape.k_dim,
                           lengths.data());
    const std::vector<float> raw = vectors_of(view, Vectors::values, kv_head, entries);
    const Eigen::MatrixXd values =
        Eigen::Map<const Eigen::MatrixXf>(raw.data(), shape.v_dim, std::ssize(entries))
            .cast<double>();
    (void)reduce_group(shape, head, Group::mean, out, [&](int q, std::span<double> scores) {
      weigh(anchors_.of(view, q), keys, lengths, scores);
      Eigen::MatrixXd capacity = Eigen::MatrixXd::Identity(shape.v_dim, shape.v_dim);
      for (std::size_t i = 0; i < scores.size(); ++i) {
        const auto v = values.col(static_cast<Eigen::Index>(i));
        capacity.noalias() += (scores[i] + 1e-6) * v * v.transpose();
      }
      const Eigen::LLT<Eigen::MatrixXd> factor(capacity);
      for (std::size_t i = 0; i < scores.size(); ++i) {
        const Eigen::VectorXd v = values.col(static_cast<Eigen::Index>(i));
        scores[i] *= v.dot(factor.solve(v));
      }
      return 0.0;
    });
    round_sums(out);
    return 0;
  }

 private:
  // exp(tau (cos - its largest)) of every key.
  void weigh(const std::vector<double>& anchor, std::span<const float> keys,
             std::span<const double> squared_lengths, std::span<double> weights) const {
    double square = 0;
    for (const double a : anchor) square += a * a;
    const double length = std::max(std::sqrt(square), 1e-12);
    double most = -1;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      double dot = 0;
      for (std::size_t d = 0; d < anchor.size(); ++d)
        dot += anchor[d] * static_cast<double>(keys[i * anchor.size() + d]);
      const double product = length * std::max(std::sqrt(squared_lengths[i]), 1e-12);
      weights[i] = std::clamp(dot / product, -1.0, 1.0);
      most = std::max(most, weights[i]);
    }
    for (double& w : weights) w = std::exp(tau_ * (w - most));
  }

  MeanFutureQuery anchors_;
  double tau_;
};

}  // namespace

PolicyEntry cap() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "cap";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps entries whose values add most, where their keys lie along queries to come";
  entry.source = "arXiv 2604.25975; code NVIDIA/kvpress";
  entry.evidence = "code read (kvpress)";
  entry.differs = "the paper neither normalises keys and queries nor turns the mean query";
  entry.needs = "q, k and v; the rope_* fields where the model rotates q and k";
  entry.parameters = {
      budget_parameter(),
      {.name = "sinks", .fallback = "4", .unit = "tokens", .help = "first tokens, always kept"},
      future_parameter(),
      {.name = "tau",
       .kind = Kind::real,
       .fallback = "5",
       .help = "how sharply entries count by their cosine",
       .range = {0, 1e4}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const TokenCount sinks = arguments.count("sinks");
    Scoring scoring;
    scoring.make = [sinks, future = arguments.count("future"),
                    tau = arguments.real("tau")](const LayerShape& shape) {
      return std::make_unique<Capacity>(shape, sinks, future, tau);
    };
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    recipe.protect = own(ProtectRule([sinks](TokenCount) { return Protect{sinks, 0}; }));
    // The mean query of every query head, and one matrix, in fp32, while the prompt's end is
    // decided.
    const std::int64_t bytes =
        4 * (std::int64_t{geometry.layers()} * geometry.query_heads * geometry.k_dim +
             std::int64_t{geometry.v_dim} * geometry.v_dim);
    recipe.charge.during = [bytes, last = geometry.evict_point - 1](RowIndex row) {
      return row == last ? bytes : 0;
    };
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
