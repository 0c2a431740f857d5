// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/triattention_rule.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace kvspan::policies {
namespace {

constexpr std::int64_t kFarthest = 65536;  // of the offsets 1, 2, 4, ...

// Where the two coordinates of a pair lie.
std::pair<std::size_t, std::size_t> pair_of(const Rope& rope, std::size_t f) {
  if (rope.interleaved) return {2 * f, 2 * f + 1};
  return {f, f + index(rope.dim / 2)};
}

// Mean over the offsets of the turn that they give a pair.
std::complex<double> mean_turn(double frequency) {
  std::complex<double> sum = 0;
  double count = 0;
  for (std::int64_t offset = 1; offset <= kFarthest; offset *= 2) {
    sum += std::polar(1.0, static_cast<double>(offset) * frequency);
    ++count;
  }
  return sum / count;
}

// What a score is made of: a dot product with the key as it lies in the cache, since
// Re[q e^(i (now - pos + offset) w) conj(k)] = Re[q e^(i (now + offset) w) conj(k e^(i pos w))],
// and a weight of each pair's magnitude.
struct Weights {
  std::vector<double> along;      // [k_dim]
  std::vector<double> magnitude;  // [pairs]
};

Weights weights_of(const QueryCentre& q, const Rope& rope, RowIndex now) {
  Weights out;
  out.along.assign(index(rope.dim), 0.0);
  for (std::size_t f = 0; f < q.mean.size(); ++f) {
    const double frequency = rope.inverse_frequencies[f];
    const std::complex<double> turned =
        q.mean[f] * std::polar(1.0, static_cast<double>(now) * frequency) * mean_turn(frequency);
    const auto [a, b] = pair_of(rope, f);
    out.along[a] = turned.real();
    out.along[b] = turned.imag();
    out.magnitude.push_back(q.magnitude[f] - std::abs(q.mean[f]));
  }
  out.along.insert(out.along.end(), q.rest.begin(), q.rest.end());
  return out;
}

void standardise(std::span<double> x) {
  const auto count = static_cast<double>(x.size());
  const double mean = std::accumulate(x.begin(), x.end(), 0.0) / count;
  double square = 0;
  for (const double value : x) square += (value - mean) * (value - mean);
  const double deviation = std::max(std::sqrt(square / count), 1e-6);
  for (double& value : x) value = (value - mean) / deviation;
}

}  // namespace

std::vector<QueryCentre> query_centres(const Trace& trace, int layer, RowIndex end) {
  constexpr RowIndex kBlock = 256;
  const Rope unrotated;
  const Rope& rope = trace.meta().rope ? *trace.meta().rope : unrotated;
  const std::size_t pairs = index(rope.dim / 2);
  QueryCentre none{std::vector<std::complex<double>>(pairs), std::vector<double>(pairs, 0.0),
                   std::vector<double>(index(trace.meta().head_dim - rope.dim), 0.0)};
  std::vector<QueryCentre> out(index(trace.meta().query_heads), none);
  for (RowIndex begin = 0; begin < end; begin += kBlock) {
    const RowIndex stop = std::min(end, begin + kBlock);
    const LayerVectors q = read_vectors(trace, layer, 'q', begin, stop, true);
    for (RowIndex row = begin; row < stop; ++row) {
      for (std::size_t h = 0; h < out.size(); ++h) {
        const std::span<const float> x = q.at(row, static_cast<int>(h));
        for (std::size_t f = 0; f < pairs; ++f) {
          const auto [a, b] = pair_of(rope, f);
          const std::complex<double> z(static_cast<double>(x[a]), static_cast<double>(x[b]));
          out[h].mean[f] += z;
          out[h].magnitude[f] += std::abs(z);
        }
        for (std::size_t d = 0; d < none.rest.size(); ++d)
          out[h].rest[d] += static_cast<double>(x[index(rope.dim) + d]);
      }
    }
  }
  const auto rows = static_cast<double>(end);
  for (QueryCentre& centre : out) {
    for (auto& z : centre.mean) z /= rows;
    for (double& m : centre.magnitude) m /= rows;
    for (double& x : centre.rest) x /= rows;
  }
  return out;
}

namespace {

// Scores of the keys of one head, the largest of the group's; keys [entries][k_dim].
void score_keys(const std::vector<QueryCentre>& centres, const Rope& rope, const View& view,
                int head, std::span<const float> keys, std::span<double> out) {
  const LayerShape& shape = view.shape();
  const auto dim = index(shape.k_dim);
  const std::size_t pairs = index(rope.dim / 2);
  std::vector<double> magnitudes(out.size() * pairs);
  for (std::size_t i = 0; i < out.size(); ++i) {
    for (std::size_t f = 0; f < pairs; ++f) {
      const auto [a, b] = pair_of(rope, f);
      magnitudes[i * pairs + f] = std::hypot(static_cast<double>(keys[i * dim + a]),
                                             static_cast<double>(keys[i * dim + b]));
    }
  }
  (void)reduce_group(shape, head, Group::max, out, [&](int q, std::span<double> scores) {
    const Weights w = weights_of(centres[index(q)], rope, view.pass().end);
    for (std::size_t i = 0; i < scores.size(); ++i) {
      double sum = 0;
      for (std::size_t d = 0; d < dim; ++d)
        sum += w.along[d] * static_cast<double>(keys[i * dim + d]);
      for (std::size_t f = 0; f < pairs; ++f) sum += w.magnitude[f] * magnitudes[i * pairs + f];
      scores[i] = sum;
    }
    standardise(scores);
    return 0.0;
  });
}

}  // namespace

double Trigonometric::score(const View& view, int head, std::span<const TokenIndex> entries,
                            std::span<double> out) {
  const Rope unrotated;
  const std::vector<float> keys =
      vectors_of(view, Vectors::keys, view.shape().kv_head(head), entries);
  score_keys(centres_, view.rope() != nullptr ? *view.rope() : unrotated, view, head, keys, out);
  round_sums(out);
  return 0;
}

void CutsOfModel::score(const View& view, int head, std::span<const TokenIndex> entries,
                        std::span<double> out) {
  const std::scoped_lock lock(mutex_);  // layers ask side by side, and for the same
  for (int l = static_cast<int>(centres_.size()); l < view.shape().layers; ++l)
    centres_.push_back(centres_of_(l));
  Cut& cut = cuts_[{view.pass().end, head}];
  if (!std::ranges::equal(cut.entries, entries)) {
    cut.entries.assign(entries.begin(), entries.end());
    cut.scores.assign(entries.size(), 0.0);
    const Rope unrotated;
    const int kv_head = view.shape().kv_head(head);
    std::vector<double> one(entries.size());
    for (std::size_t l = 0; l < centres_.size(); ++l) {
      const LayerVectors all =
          read_vectors(trace_, static_cast<int>(l), 'k', entries.front(), entries.back() + 1);
      std::vector<float> keys;
      for (const TokenIndex t : entries) {
        const std::span<const float> k = all.at(t, kv_head);
        keys.insert(keys.end(), k.begin(), k.end());
      }
      score_keys(centres_[l], view.rope() != nullptr ? *view.rope() : unrotated, view, head, keys,
                 one);
      for (std::size_t i = 0; i < one.size(); ++i) cut.scores[i] += one[i];
    }
    for (double& score : cut.scores) score /= static_cast<double>(centres_.size());
    round_sums(cut.scores);
  }
  std::ranges::copy(cut.scores, out.begin());
}

}  // namespace kvspan::policies
