// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/compactor_rule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include <Eigen/Cholesky>

#include "sim/base/random.h"
#include "sim/policies/shared/groups.h"
#include "sim/policies/shared/kernels.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

using Columns = std::vector<std::vector<double>>;  // [heads][entries]

// One query head's attention to a chunk of entries by the queries of the same tokens, whichever is
// later; logits are not scaled, as in kvpress. It fills up the last chunk to `size`: filled-up keys
// have a logit of 0, and filled-up queries read all alike.
void add_chunk(const View& view, int query_head, std::span<const TokenIndex> entries,
               std::span<const float> keys, RowIndex size, std::span<double> sums) {
  const auto missing = static_cast<double>(size - std::ssize(entries));
  std::vector<double> z(entries.size());
  for (const TokenIndex row : entries) {
    const std::vector<float> raw = view.query(query_head, row);
    const std::vector<double> q(raw.begin(), raw.end());
    kernels::dots(keys.data(), std::ssize(entries), view.shape().k_dim, q.data(), z.data());
    double most = *std::max_element(z.begin(), z.end());
    if (missing > 0) most = std::max(most, 0.0);
    double sum = missing > 0 ? missing * std::exp(-most) : 0;
    for (double& value : z) sum += value = std::exp(value - most);
    for (std::size_t i = 0; i < z.size(); ++i) sums[i] += z[i] / sum;
  }
  for (double& sum : sums) sum += missing / static_cast<double>(size);
}

std::vector<double> attention_of(const View& view, int head, std::span<const TokenIndex> entries,
                                 RowIndex chunk) {
  const LayerShape& shape = view.shape();
  const int kv_head = shape.kv_head(head);
  const auto dim = index(shape.k_dim);
  const std::vector<float> keys = vectors_of(view, Vectors::keys, kv_head, entries);
  std::vector<double> out(entries.size());
  (void)reduce_group(shape, head, Group::mean, out, [&](int q, std::span<double> sums) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (std::size_t begin = 0; begin < entries.size(); begin += index(chunk)) {
      const std::size_t count = std::min(index(chunk), entries.size() - begin);
      add_chunk(view, q, entries.subspan(begin, count),
                std::span(keys).subspan(begin * dim, count * dim), chunk,
                sums.subspan(begin, count));
    }
    return 0.0;
  });
  const std::vector<float> values = vectors_of(view, Vectors::values, kv_head, entries);
  std::vector<double> squared(entries.size());
  kernels::squared_norms(values.data(), std::ssize(entries), shape.v_dim, shape.v_dim,
                         squared.data());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] *= std::sqrt(squared[i]);
  pool(Pool::avg, 3, out);
  return out;
}

// Standard normal numbers over sqrt(columns), of one head.
Eigen::MatrixXd sketch_of(const LayerShape& shape, int head, const CompactorSettings& settings) {
  Eigen::MatrixXd out(shape.k_dim, settings.sketch);
  for (Eigen::Index r = 0; r < out.rows(); ++r) {
    for (Eigen::Index c = 0; c < out.cols(); ++c) {
      const double angle =
          uniform(settings.seed, {shape.model_layer, head, r, c, 0}) * 2 * std::numbers::pi;
      const double radius =
          std::sqrt(-2 * std::log(uniform(settings.seed, {shape.model_layer, head, r, c, 1})));
      out(r, c) = radius * std::cos(angle) / std::sqrt(settings.sketch);
    }
  }
  return out;
}

// x (X'X + jitter)^-1 x of every key, turned back to position 0 and centred.
std::vector<double> leverage_of(const View& view, int head, std::span<const TokenIndex> entries,
                                const CompactorSettings& settings) {
  const LayerShape& shape = view.shape();
  const auto count = static_cast<Eigen::Index>(entries.size());
  std::vector<float> keys = vectors_of(view, Vectors::keys, shape.kv_head(head), entries);
  const auto dim = index(shape.k_dim);
  for (std::size_t i = 0; view.rope() != nullptr && i < entries.size(); ++i)
    rotate(*view.rope(), -static_cast<double>(entries[i]), std::span(keys).subspan(i * dim, dim));
  Eigen::MatrixXd x =
      Eigen::Map<const Eigen::MatrixXf>(keys.data(), shape.k_dim, count).cast<double>();
  x.colwise() -= Eigen::VectorXd(x.rowwise().mean());
  if (settings.sketch > 0) x = sketch_of(shape, head, settings).transpose() * x;
  const Eigen::MatrixXd gram = x * x.transpose();
  Eigen::LLT<Eigen::MatrixXd> factor;
  double jitter = 1e-2;
  do {
    factor.compute(gram + jitter * Eigen::MatrixXd::Identity(gram.rows(), gram.cols()));
    jitter *= 10;
  } while (factor.info() != Eigen::Success);
  std::vector<double> out;
  for (Eigen::Index i = 0; i < count; ++i) {
    const Eigen::VectorXd key = x.col(i);
    out.push_back(std::max(0.0, key.dot(factor.solve(key))));
  }
  return out;
}

// Less the mean, over the standard deviation, of all heads together; added to `to`.
void add_standardised(const Columns& values, double weight, Columns& to) {
  double sum = 0;
  double count = 0;
  for (const auto& head : values) {
    for (const double x : head) sum += x;
    count += static_cast<double>(head.size());
  }
  const double mean = sum / count;
  double square = 0;
  for (const auto& head : values) {
    for (const double x : head) square += (x - mean) * (x - mean);
  }
  const double deviation = std::max(std::sqrt(square / std::max(1.0, count - 1)), 1e-6);
  for (std::size_t h = 0; h < values.size(); ++h) {
    for (std::size_t i = 0; i < values[h].size(); ++i)
      to[h][i] += weight * (values[h][i] - mean) / deviation;
  }
}

}  // namespace

void CompactorScores::look_at_layer(const View& view, RowIndex from) {
  const LayerShape& shape = view.shape();
  seen_ = view.pass().end;
  from_ = from;
  entries_.clear();
  scores_.clear();
  for (int h = 0; h < shape.heads; ++h) {
    const auto all = view.resident(h);
    const auto first = std::lower_bound(all.begin(), all.end(), std::max(settings_.sinks, from));
    const auto last = std::lower_bound(first, all.end(), seen_ - settings_.recent);
    entries_.emplace_back(first, last);
    scores_.emplace_back(entries_.back().size(), 0.0);
  }
  Columns attention, leverage;
  for (std::size_t h = 0; h < entries_.size(); ++h) {
    const int head = static_cast<int>(h);
    if (settings_.chunk > 0)
      attention.push_back(attention_of(view, head, entries_[h], settings_.chunk));
    if (settings_.sketch >= 0) leverage.push_back(leverage_of(view, head, entries_[h], settings_));
  }
  if (settings_.chunk > 0) add_standardised(attention, 1, scores_);
  if (settings_.sketch >= 0) add_standardised(leverage, settings_.blending, scores_);
}

double CompactorScores::score(const View& view, int head, std::span<const TokenIndex> entries,
                              std::span<double> out) {
  // Under chunked() the newborns of a pass may compete alone.
  const Pass& pass = view.pass();
  const RowIndex from = entries.front() >= pass.begin ? pass.begin : 0;
  if (seen_ != pass.end || from < from_) look_at_layer(view, from);
  const std::vector<TokenIndex>& known = entries_[index(head)];
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto at = std::lower_bound(known.begin(), known.end(), entries[i]);
    out[i] = scores_[index(head)][index(at - known.begin())];
  }
  round_sums(out);
  return 0;
}

}  // namespace kvspan::policies
