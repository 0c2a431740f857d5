// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/judgeq_fit.h"

#include <algorithm>
#include <cmath>

#include <Eigen/Core>

#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

constexpr RowIndex kMostFitRows = 16384;

// ridge: one row a cut point c: the means before c against the mean of the next 32 queries.
// centres: the queries themselves.
std::vector<Samples> gather(const Trace& trace, int layer, RowIndex from, RowIndex end,
                            const FitOptions& options) {
  const TraceMeta& m = trace.meta();
  const RowIndex begin = std::max(from, end - kMostFitRows);
  const LayerVectors q = read_vectors(trace, layer, 'q', begin, end, true);
  std::vector<Samples> out(index(m.query_heads));
  const std::size_t dim = index(m.head_dim);
  for (int head = 0; head < m.query_heads; ++head) {
    Samples& s = out[index(head)];
    if (options.method == "centres") {
      s.width = dim;
      const RowIndex stride = std::max<RowIndex>(1, (end - begin) / kMostQueries);
      for (RowIndex r = begin; r < end; r += stride) {
        s.x.insert(s.x.end(), q.at(r, head).begin(), q.at(r, head).end());
        s.y.push_back(0);
      }
      continue;
    }
    s.width = 2 * dim;
    s.outputs = dim;
    std::vector<float> rows;
    for (RowIndex r = begin; r < end; ++r)
      rows.insert(rows.end(), q.at(r, head).begin(), q.at(r, head).end());
    const RowIndex ahead = std::clamp<RowIndex>((end - begin) / 4, 1, kLastQueries);
    const RowIndex stride = std::max<RowIndex>(1, (end - begin) / 256);
    for (RowIndex c = begin + ahead; c + ahead <= end; c += stride) {
      const std::vector<float> x = query_means(std::span(rows).first(index(c - begin) * dim), dim);
      s.x.insert(s.x.end(), x.begin(), x.end());
      for (std::size_t d = 0; d < dim; ++d) {
        double mean = 0;
        for (RowIndex r = c; r < c + ahead; ++r)
          mean += static_cast<double>(q.at(r, head)[d]) / static_cast<double>(ahead);
        s.y.push_back(mean);
      }
    }
  }
  return out;
}

Regressor fit(const Samples& samples, const FitOptions& options) {
  if (options.method == "ridge") return fit_ridge(samples, options.lambda);
  return fit_centres(samples.x, samples.width, index(options.queries), options.seed);
}

// Kendall's tau between predicted and real attention: the first half of the rows is the prompt, at
// most 64 rows of the rest answer.
double quality(const Regressor& model, const Samples& /*samples*/, const Trace& trace, int layer,
               int head, RowIndex from, RowIndex end) {
  const TraceMeta& m = trace.meta();
  const std::size_t dim = index(m.head_dim);
  from = std::max(from, end - kMostFitRows);
  const RowIndex cut = from + (end - from) / 2;
  if (cut == from || cut == end) return 0;
  const LayerVectors k = read_vectors(trace, layer, 'k', from, cut);
  const LayerVectors q = read_vectors(trace, layer, 'q', from, end);
  std::vector<float> keys;
  for (RowIndex i = from; i < cut; ++i) {
    const auto key = k.at(i, head / (m.query_heads / m.kv_heads));
    keys.insert(keys.end(), key.begin(), key.end());
  }
  Queries answer;
  for (RowIndex r = cut; r < end; r += std::max<RowIndex>(1, (end - cut) / 64))
    answer.emplace_back(q.at(r, head).begin(), q.at(r, head).end());
  std::vector<float> before;
  for (RowIndex r = from; r < cut; ++r) {
    std::vector<float> one(q.at(r, head).begin(), q.at(r, head).end());
    if (m.rope) rotate(*m.rope, -static_cast<double>(r), one);
    before.insert(before.end(), one.begin(), one.end());
  }
  const auto queries =
      model.method == "centres" ? centres_of(model) : predicted(model, query_means(before, dim), 1);
  std::vector<double> truth(index(cut - from), 0.0);
  std::vector<double> guess = truth;
  const std::vector<std::size_t> all(std::max(answer.size(), queries.size()), 0);
  add_softmax(keys, answer, m, all, truth);
  add_softmax(keys, rotated(m, queries, cut), m, all, guess);
  return kendall_tau(guess, truth);
}

}  // namespace

void add_softmax(std::span<const float> keys, const Queries& queries, const TraceMeta& m,
                 std::span<const std::size_t> visible, std::span<double> out) {
  using FloatMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const auto count = static_cast<Eigen::Index>(out.size());
  const Eigen::Map<const FloatMatrix> all(
      keys.data(), count, count > 0 ? static_cast<Eigen::Index>(keys.size()) / count : 0);
  Eigen::Map<Eigen::ArrayXd> sums(out.data(), count);
  for (std::size_t j = 0; j < queries.size(); ++j) {
    const Eigen::Index n = count - static_cast<Eigen::Index>(visible[j]);
    if (n <= 0) continue;
    const Eigen::Map<const Eigen::VectorXf> q(queries[j].data(), all.cols());
    Eigen::ArrayXd z = (all.bottomRows(n) * q).cast<double>().array() * m.score_scale;
    if (m.logit_softcap > 0) z = m.logit_softcap * (z / m.logit_softcap).tanh();
    // Not Eigen's exp(), which gives the last elements of an array other last bits.
    z = (z - z.maxCoeff()).unaryExpr([](double x) { return std::exp(x); });
    sums.tail(n) += z / z.sum();
  }
}

Queries rotated(const TraceMeta& m, Queries queries, RowIndex first) {
  for (std::size_t j = 0; j < queries.size() && m.rope; ++j)
    rotate(*m.rope, static_cast<double>(first) + static_cast<double>(j), queries[j]);
  return queries;
}

Queries centres_of(const Regressor& model) {
  Queries out;
  for (std::size_t i = 0; i < model.hidden; ++i) {
    const auto at = model.parameters.begin() + static_cast<std::ptrdiff_t>(i * model.width);
    out.emplace_back(at, at + static_cast<std::ptrdiff_t>(model.width));
  }
  return out;
}

Queries predicted(const Regressor& model, std::span<const float> features, std::size_t count) {
  std::vector<double> out(model.outputs);
  model.evaluate(features, out);
  return Queries(count, std::vector<float>(out.begin(), out.end()));
}

std::vector<float> query_means(std::span<const float> rows, std::size_t dim) {
  const std::size_t n = rows.size() / dim;
  const std::size_t last = std::min<std::size_t>(n, kLastQueries);
  std::vector<double> sums(2 * dim, 0.0);
  for (std::size_t r = 0; r < n; ++r) {
    for (std::size_t d = 0; d < dim; ++d) {
      const auto value = static_cast<double>(rows[r * dim + d]);
      if (r + last >= n) sums[d] += value / static_cast<double>(last);
      sums[dim + d] += value / static_cast<double>(n);
    }
  }
  return {sums.begin(), sums.end()};
}

FittedScorer judgeq_fit() {
  FittedScorer out;
  out.name = "judgeq";
  out.features = "mean of the last 32 queries and of all, before rotary (centres: the queries)";
  out.label = "mean of the next 32 queries; tau: its attention against the real one";
  out.methods = {"centres", "ridge"};  // the first is what judgeq() takes
  out.gather = gather;
  out.fit = fit;
  out.quality = quality;
  return out;
}

}  // namespace kvspan::policies
