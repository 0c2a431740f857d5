// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/lava_rule.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "sim/policies/shared/one_list.h"

namespace kvspan::policies {
namespace {

double largest_norm(const View& view, int kv_head, std::span<const TokenIndex> entries) {
  const std::vector<float> values = vectors_of(view, Vectors::values, kv_head, entries);
  const auto dim = index(view.shape().v_dim);
  double largest = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    double norm = 0;
    for (std::size_t d = 0; d < dim; ++d)
      norm += std::abs(static_cast<double>(values[i * dim + d]));
    largest = std::max(largest, norm);
  }
  return largest;
}

// Of a layer's scores as shares of their sum, over that of equal ones.
double relative_entropy(const LayerShow& layer) {
  double sum = 0;
  double count = 0;
  for (const auto& head : layer.scores) {
    sum = std::accumulate(head.begin(), head.end(), sum);
    count += static_cast<double>(head.size());
  }
  double entropy = 0;
  for (const auto& head : layer.scores) {
    for (const double score : head) {
      const double p = score / (sum + 1e-16);
      entropy -= p * std::log(p + 1e-16);
    }
  }
  return count > 1 ? std::max(0.0, entropy / std::log(count)) : 0.0;
}

}  // namespace

double ValueVotes::score(const View& view, int head, std::span<const TokenIndex> entries,
                         std::span<double> out) {
  const LayerShape& shape = view.shape();
  const auto rows = static_cast<double>(std::min(window_, view.pass().end));
  const double slack =
      reduce_group(shape, head, Group::max, out, [&](int q, std::span<double> votes) {
        const double s = view.votes(q, window_, entries, votes);
        for (double& vote : votes) vote /= rows;
        pool(Pool::max, kernel_, votes);
        return s / rows;
      });
  const double largest = largest_norm(view, shape.kv_head(head), entries);
  for (double& score : out) score *= largest;
  round_sums(out);
  return slack * largest;
}

TokenCount EntropyShares::capacity(const LayerShape& shape, int /*head*/,
                                   const Sizing& sizing) const {
  const TokenCount base = sizing.tokens - settings_.window;
  if (sizing.tokens == kAll || base <= 0) return sizing.tokens;
  if (settings_.even) {
    return settings_.window +
           std::llrint(static_cast<double>(base) * (1 - settings_.alpha) + floor(base, sizing));
  }
  const auto one_head = static_cast<double>(base * shape.heads * shape.layers);
  const double most =
      one_head * (1 - settings_.alpha) + settings_.alpha * static_cast<double>(sizing.tokens);
  return settings_.window + std::max(base * shape.layers, static_cast<TokenCount>(std::ceil(most)));
}

Shares EntropyShares::share_out(std::span<const LayerShow> layers, const Sizing& sizing) const {
  std::vector<double> part;
  for (const LayerShow& layer : layers) part.push_back(relative_entropy(layer));
  const double sum = std::accumulate(part.begin(), part.end(), 0.0);
  const auto sharing = static_cast<double>(
      std::ranges::count_if(layers, [](const LayerShow& layer) { return !layer.scores.empty(); }));
  const double all = static_cast<double>(sizing.tokens - settings_.window) * sharing;
  Shares out;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto own = static_cast<TokenCount>((sum > 0 ? part[l] / sum : 1 / sharing) * all);
    out.push_back(of_heads(layers[l], own, sizing));
  }
  return out;
}

double EntropyShares::floor(TokenCount part, const Sizing& sizing) const {
  return std::trunc(settings_.alpha *
                    static_cast<double>(settings_.floor_of_layer ? part : sizing.tokens));
}

std::vector<TokenCount> EntropyShares::of_heads(const LayerShow& layer, TokenCount part,
                                                const Sizing& sizing) const {
  std::vector<TokenCount> keep(layer.scores.size(), sizing.tokens);
  if (sizing.tokens <= settings_.window) return keep;  // the newest
  std::vector<Contender> heads;
  bool room = false;
  for (std::size_t h = 0; h < keep.size(); ++h) {
    heads.push_back({layer.tokens[h], layer.scores[h]});
    room = room || part > std::ssize(layer.scores[h]);
  }
  if (room) return std::vector<TokenCount>(keep.size(), kAll);
  const std::vector<TokenCount> count =
      among_best(heads, part * static_cast<TokenCount>(keep.size()));
  for (std::size_t h = 0; h < keep.size(); ++h) {
    keep[h] =
        layer.protected_[h] +
        std::llrint(static_cast<double>(count[h]) * (1 - settings_.alpha) + floor(part, sizing));
  }
  return keep;
}

}  // namespace kvspan::policies
