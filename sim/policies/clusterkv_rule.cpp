// SPDX-License-Identifier: Apache-2.0
#include "sim/policies/clusterkv_rule.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "sim/base/random.h"
#include "sim/policies/shared/kernels.h"
#include "sim/policies/shared/pages.h"

namespace kvspan::policies {

void Clusters::add(const View& view, int kv_head, TokenIndex begin, TokenIndex end,
                   TokenCount count, int iterations, std::uint64_t seed) {
  const std::size_t n = index(end - begin);
  const std::size_t c = std::min(n, index(count));
  if (c == 0) return;
  std::vector<float> keys;
  for (TokenIndex t = begin; t < end; ++t) {
    const std::vector<float> key = view.key(kv_head, t);
    keys.insert(keys.end(), key.begin(), key.end());
  }
  const std::size_t d = index(dim_);
  std::vector<float> rank(n);
  for (std::size_t i = 0; i < n; ++i)
    rank[i] = static_cast<float>(uniform(seed, {begin, static_cast<std::int64_t>(i)}));
  std::vector<float> centroids;
  for (const std::int32_t i : best_of(rank, c))
    centroids.insert(centroids.end(), keys.begin() + i * dim_, keys.begin() + (i + 1) * dim_);
  std::vector<double> counts(c, 1.0);
  std::vector<std::size_t> labels;
  for (int round = 0; round < iterations; ++round) {
    std::vector<std::size_t> now = assign(keys, centroids);
    if (now == labels) break;
    labels = std::move(now);
    std::vector<double> sums(c * d, 0.0);
    std::vector<double> sizes(c, 0.0);
    for (std::size_t i = 0; i < n; ++i) {
      sizes[labels[i]] += 1;
      for (std::size_t x = 0; x < d; ++x)
        sums[labels[i] * d + x] += static_cast<double>(keys[i * d + x]);
    }
    for (std::size_t j = 0; j < c * d; ++j) {  // an empty cluster keeps its centroid
      if (sizes[j / d] > 0) centroids[j] = static_cast<float>(sums[j]);
    }
    for (std::size_t j = 0; j < c; ++j) {
      if (sizes[j] > 0) counts[j] = sizes[j];
    }
  }
  labels = assign(keys, centroids);
  const std::size_t first = members_.size();
  members_.resize(first + c);
  for (std::size_t i = 0; i < n; ++i)
    members_[first + labels[i]].push_back(begin + static_cast<TokenIndex>(i));
  centroids_.insert(centroids_.end(), centroids.begin(), centroids.end());
  counts_.insert(counts_.end(), counts.begin(), counts.end());
  pack(centroids_, members_.size(), panels_);
}

void Clusters::choose(std::span<const float> q, std::size_t most, std::vector<char>& flags) const {
  const std::size_t count = members_.size();
  if (count == 0) return;
  std::vector<float> scores(index(kernels::padded(static_cast<std::int64_t>(count))));
  const float* query = q.data();
  float* row = scores.data();
  kernels::logits(&query, 1, dim_, panels_.data(), 0,
                  static_cast<std::int64_t>(scores.size()) / kernels::kPanel, 1.0F, 0.0F, &row);
  for (std::size_t j = 0; j < count; ++j)
    scores[j] = static_cast<float>(static_cast<double>(scores[j]) / counts_[j]);
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  for (const std::size_t j : order) {
    for (const TokenIndex t : members_[j]) {
      if (most == 0) return;
      if (flags[index(t)] == 0) continue;
      flags[index(t)] = 2;
      --most;
    }
  }
}

void Clusters::pack(const std::vector<float>& rows, std::size_t count,
                    std::vector<float>& panels) const {
  const auto tokens = static_cast<std::int64_t>(count);
  panels.assign(index(kernels::padded(tokens) * dim_), 0.0F);
  kernels::pack_keys(rows.data(), tokens, dim_, dim_, panels.data());
}

std::vector<std::size_t> Clusters::assign(const std::vector<float>& keys,
                                          const std::vector<float>& centroids) const {
  const std::size_t d = index(dim_);
  const std::size_t c = centroids.size() / d;
  std::vector<double> norms(c, 0.0);
  for (std::size_t j = 0; j < c; ++j) {
    for (std::size_t x = 0; x < d; ++x)
      norms[j] +=
          static_cast<double>(centroids[j * d + x]) * static_cast<double>(centroids[j * d + x]);
    norms[j] = norms[j] > 0 ? std::sqrt(norms[j]) : 1.0;
  }
  std::vector<float> panels;
  pack(centroids, c, panels);
  const std::size_t n = keys.size() / d;
  const std::size_t width = panels.size() / d;
  constexpr std::size_t kRows = 32;
  std::vector<float> cosines(kRows * width);
  std::vector<std::size_t> out(n);
  for (std::size_t begin = 0; begin < n; begin += kRows) {
    const std::size_t rows = std::min(kRows, n - begin);
    std::vector<const float*> queries;
    std::vector<float*> results;
    for (std::size_t r = 0; r < rows; ++r) {
      queries.push_back(keys.data() + (begin + r) * d);
      results.push_back(cosines.data() + r * width);
    }
    kernels::logits(queries.data(), static_cast<std::int64_t>(rows), dim_, panels.data(), 0,
                    static_cast<std::int64_t>(width) / kernels::kPanel, 1.0F, 0.0F, results.data());
    for (std::size_t r = 0; r < rows; ++r) {
      float* row = results[r];
      for (std::size_t j = 0; j < c; ++j)
        row[j] = static_cast<float>(static_cast<double>(row[j]) / norms[j]);
      out[begin + r] = index(std::max_element(row, row + c) - row);
    }
  }
  return out;
}

void ClusterSelector::select(const View& view, std::span<Reads> reads) {
  const LayerShape& shape = view.shape();
  const RowIndex row = view.pass().begin;
  if (!generates(view.pass())) return;
  update(view, row);
  if (row + 1 <= settings_.budget) return;
  const int per_kv = shape.query_heads / shape.kv_heads;
  const std::size_t places = index(std::max<TokenCount>(0, settings_.budget - settings_.sinks));
  std::vector<std::vector<TokenIndex>> chosen(index(shape.query_heads));
  for (int q = 0; q < shape.query_heads; ++q) {
    const auto list = view.resident(q / shape.group());
    std::vector<char> flags(index(row + 1), 0);
    for (const TokenIndex t : list) flags[index(t)] = 1;
    clusters_[index(q / per_kv)].choose(view.query(q, row), places, flags);
    std::vector<TokenIndex>& out = chosen[index(q)];
    std::vector<TokenIndex> attended;
    for (const TokenIndex t : list) {
      const bool is_chosen = flags[index(t)] == 2;
      if (is_chosen) out.push_back(t);
      if (is_chosen || t < settings_.sinks || t >= clustered_) attended.push_back(t);
    }
    if (settings_.offload) reads[index(q)].loaded = misses(shape, q, out);
    if (attended.size() < list.size()) reads[index(q)].attended = std::move(attended);
  }
  previous_ = std::move(chosen);
}

void ClusterSelector::update(const View& view, RowIndex row) {
  const auto add = [&](TokenIndex end, TokenCount count) {
    const LayerShape& shape = view.shape();
    const TokenIndex begin = std::max(clustered_, static_cast<TokenIndex>(settings_.sinks));
    for (int h = 0; h < shape.kv_heads; ++h) {
      const std::uint64_t seed =
          splitmix64(settings_.seed) ^ splitmix64(index(shape.model_layer) * 65536 + index(h));
      if (begin < end)
        clusters_[index(h)].add(view, h, begin, end, count, settings_.iterations, seed);
    }
    clustered_ = end;
  };
  if (clustered_ == 0) add(static_cast<TokenIndex>(settings_.prompt), settings_.clusters);
  while (row - clustered_ >= settings_.every)
    add(clustered_ + static_cast<TokenIndex>(settings_.every), settings_.added);
}

std::vector<TokenIndex> ClusterSelector::misses(const LayerShape& shape, int query_head,
                                                const std::vector<TokenIndex>& chosen) const {
  const int group = shape.group();
  const int first = settings_.shared_buffer ? query_head / group * group : query_head;
  const int last = settings_.shared_buffer ? first + group : query_head + 1;
  std::vector<TokenIndex> out;
  for (const TokenIndex t : chosen) {
    bool there = false;
    for (int q = first; q < last && !there; ++q)
      there = std::binary_search(previous_[index(q)].begin(), previous_[index(q)].end(), t);
    if (!there) out.push_back(t);
  }
  return out;
}

}  // namespace kvspan::policies
