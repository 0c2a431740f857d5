// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/vase_rule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "sim/base/random.h"
#include "sim/policies/shared/kernels.h"

namespace kvspan::policies {
namespace {

constexpr double kLarge = 1e6;  // above every drawn score, which are logarithms

// Sizes of the values of entries in their places; the first `sinks` are the largest of all.
std::vector<double> sizes_of(const View& view, int head, std::span<const TokenIndex> entries,
                             const VaseSettings& settings) {
  const auto dim = index(view.shape().v_dim);
  const std::vector<float> values =
      vectors_of(view, Vectors::values, view.shape().kv_head(head), entries);
  std::vector<double> out;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::span<const float> v = std::span(values).subspan(i * dim, dim);
    if (settings.size == "range") {
      const auto [least, most] = std::minmax_element(v.begin(), v.end());
      out.push_back(static_cast<double>(*most) - static_cast<double>(*least));
    } else if (settings.size == "l2") {
      out.push_back(squared_norm(v));
    } else {
      const double mean = std::accumulate(v.begin(), v.end(), 0.0) / static_cast<double>(dim);
      double sum = 0;
      for (const float x : v)
        sum += (static_cast<double>(x) - mean) * (static_cast<double>(x) - mean);
      out.push_back(sum);
    }
    if (i < settings.sinks) out.back() = std::numeric_limits<double>::infinity();
  }
  return out;
}

// Votes of the buffer's rows, each a softmax over these entries alone; mean over rows, pooled, mean
// of the group.
void votes_of(const View& view, int head, std::span<const TokenIndex> entries,
              const VaseSettings& settings, std::span<double> out) {
  const LayerShape& shape = view.shape();
  const std::vector<float> keys = vectors_of(view, Vectors::keys, shape.kv_head(head), entries);
  const RowIndex end = view.pass().end;
  const RowIndex first = std::max<RowIndex>(0, end - settings.buffer);
  std::vector<double> z(entries.size());
  (void)reduce_group(shape, head, Group::mean, out, [&](int g, std::span<double> votes) {
    std::fill(votes.begin(), votes.end(), 0.0);
    for (RowIndex row = first; row < end; ++row) {
      const std::vector<float> raw = view.query(g, row);
      const std::vector<double> q(raw.begin(), raw.end());
      kernels::dots(keys.data(), std::ssize(entries), shape.k_dim, q.data(), z.data());
      const double most = *std::max_element(z.begin(), z.end());
      double sum = 0;
      for (double& x : z) sum += x = std::exp((x - most) * view.score_scale());
      for (std::size_t i = 0; i < z.size(); ++i)
        votes[i] += z[i] / sum / static_cast<double>(end - first);
    }
    pool(Pool::avg, settings.kernel, votes);
    return 0.0;
  });
}

// |x G|^2 of every vector.
std::vector<double> sketched(std::span<const float> vectors, std::size_t dim,
                             const std::vector<double>& matrix, std::size_t columns) {
  std::vector<double> out;
  for (std::size_t at = 0; at < vectors.size(); at += dim) {
    double sum = 0;
    for (std::size_t c = 0; c < columns; ++c) {
      double product = 0;
      for (std::size_t d = 0; d < dim; ++d)
        product += static_cast<double>(vectors[at + d]) * matrix[c * dim + d];
      sum += product * product;
    }
    out.push_back(sum);
  }
  return out;
}

}  // namespace

double SampledVotes::score(const View& view, int head, std::span<const TokenIndex> entries,
                           std::span<double> out) {
  votes_of(view, head, entries, settings_, out);
  const RowIndex end = view.pass().end;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double u = uniform(settings_.seed, {view.shape().model_layer, head, entries[i], end});
    // The largest votes / exponential are a draw without replacement.
    out[i] = out[i] > 0 ? std::log(out[i]) - std::log(-std::log(u)) : -kLarge;
  }
  const std::vector<double> size = sizes_of(view, head, entries, settings_);
  std::vector<std::size_t> order(entries.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const std::size_t large = std::min(settings_.large, order.size());
  std::partial_sort(
      order.begin(), order.begin() + static_cast<std::ptrdiff_t>(large), order.end(),
      [&](std::size_t a, std::size_t b) { return size[a] != size[b] ? size[a] > size[b] : a < b; });
  for (std::size_t r = 0; r < large; ++r) out[order[r]] = kLarge - static_cast<double>(r);
  return 0;
}

double SketchedNorms::score(const View& view, int head, std::span<const TokenIndex> entries,
                            std::span<double> out) {
  const LayerShape& shape = view.shape();
  const auto dim = index(std::max(shape.k_dim, shape.v_dim));
  const auto columns = index(settings_.sketch);
  const auto matrix_of = [&](int rows) {
    std::vector<double> matrix;
    for (std::size_t c = 0; c < columns; ++c) {
      for (int d = 0; d < rows; ++d) {
        const auto draw = [&](std::int64_t which) {
          return uniform(settings_.seed, {shape.model_layer, view.pass().end,
                                          static_cast<std::int64_t>(c * dim) + d, which});
        };
        matrix.push_back(std::sqrt(-2 * std::log(draw(0))) *
                         std::cos(2 * std::numbers::pi * draw(1)));
      }
    }
    return matrix;
  };
  const int kv_head = shape.kv_head(head);
  const std::vector<double> k = sketched(vectors_of(view, Vectors::keys, kv_head, entries),
                                         index(shape.k_dim), matrix_of(shape.k_dim), columns);
  const std::vector<double> v = sketched(vectors_of(view, Vectors::values, kv_head, entries),
                                         index(shape.v_dim), matrix_of(shape.v_dim), columns);
  double sum = 0;
  for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] = k[i] * v[i];
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = i < settings_.sinks ? 1 : sum > 0 ? out[i] / sum : 0;
  round_sums(out);
  return 0;
}

}  // namespace kvspan::policies
