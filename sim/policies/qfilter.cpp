// SPDX-License-Identifier: Apache-2.0
// Q-Filters: keeps keys that point where queries of their head point: score = f . k, where f is the
// mean over the group of the first right singular vectors of the query heads' queries, each with
// the sign that gives most of these queries a positive product (where as many have a negative one,
// their sum decides; the code's sign is the solver's then). A score is known when a key is born.
// Source: Godey et al., arXiv 2503.02812; code NathanGodey/qfilters (make_filters.py: 3,000 sampled
// queries, after rotation; here all of the calibration's rows), NVIDIA/kvpress QFilterPress (the
// authors' filters, one decision after the prompt). The authors' cache also cuts while it generates
// and keeps a window: decoding(qfilter), chunked(qfilter).
#include <numeric>

#include <Eigen/Eigenvalues>

#include "sim/policies/shared/calibration.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/kernels.h"

namespace kvspan::policies {
namespace {

// The direction of one head's queries of rows [0, end).
Eigen::VectorXd main_direction(const LayerVectors& q, RowIndex end, int head) {
  const Eigen::Index dim = q.dim;
  Eigen::MatrixXd rows(dim, static_cast<Eigen::Index>(end));
  for (RowIndex row = 0; row < end; ++row) {
    const std::span<const float> x = q.at(row, head);
    rows.col(static_cast<Eigen::Index>(row)) =
        Eigen::Map<const Eigen::VectorXf>(x.data(), dim).cast<double>();
  }
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(rows * rows.transpose());
  const Eigen::VectorXd first = solver.eigenvectors().col(dim - 1);  // of the largest value
  const Eigen::ArrayXd along = (rows.transpose() * first).array();
  const Eigen::Index more = (along > 0).count() - (along < 0).count();
  return more > 0 || (more == 0 && along.sum() >= 0) ? first : Eigen::VectorXd(-first);
}

// Filters of the KV heads of a stored layer. [kv_heads][k_dim]
std::vector<Eigen::VectorXd> filters_of(const Trace& trace, int layer, RowIndex end) {
  const LayerVectors q = read_vectors(trace, layer, 'q', 0, end);
  const int group = trace.meta().query_heads / trace.meta().kv_heads;
  std::vector<Eigen::VectorXd> out;
  for (int h = 0; h < trace.meta().kv_heads; ++h) {
    Eigen::VectorXd sum = Eigen::VectorXd::Zero(q.dim);
    for (int g = h * group; g < (h + 1) * group; ++g) sum += main_direction(q, end, g);
    out.emplace_back(sum / group);
  }
  return out;
}

BirthValues projection(std::vector<Eigen::VectorXd> filters) {
  return [filters = std::move(filters)](const View& view, int head, TokenIndex begin,
                                        TokenIndex end, std::span<double> out) {
    const int kv_head = view.shape().kv_head(head);
    const Eigen::VectorXd& filter = filters[index(kv_head)];
    std::vector<TokenIndex> tokens(out.size());
    std::iota(tokens.begin(), tokens.end(), begin);
    const std::vector<float> keys = vectors_of(view, Vectors::keys, kv_head, tokens);
    kernels::dots(keys.data(), std::int64_t{end} - begin, view.shape().k_dim, filter.data(),
                  out.data());
    round_sums(out);
  };
}

}  // namespace

PolicyEntry qfilter() {
  PolicyEntry entry;
  entry.name = "qfilter";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps keys along the main direction of their head's queries, after the prompt";
  entry.source = "Godey et al. 2025, arXiv 2503.02812; code NathanGodey/qfilters, NVIDIA/kvpress";
  entry.evidence = "code read; filters fitted here";
  entry.differs =
      "the authors' filters are of 3,000 queries of a corpus; here of all queries of another trace "
      "(calibration=), or of this prompt, a stand-in";
  entry.needs = "k; q, or another trace to calibrate on";
  entry.parameters = {budget_parameter(), calibration_parameter()};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const QueryCalibration calibration = calibration_of(arguments, geometry);
    Needs needs;
    needs.k = true;
    needs.q = !calibration.other();
    Scoring scoring;
    scoring.make = birth_scorer(needs, [calibration](const LayerShape& shape) {
      if (!calibration.readable()) return projection({});
      return projection(
          filters_of(calibration.trace(), calibration.layer(shape.layer), calibration.rows()));
    });
    scoring.at_birth = true;
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    calibration.note(recipe);
    recipe.charge.once =
        std::int64_t{geometry.layers()} * geometry.kv_heads * geometry.k_dim * geometry.kv_bytes;
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
