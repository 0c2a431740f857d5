// SPDX-License-Identifier: Apache-2.0
// The selector of ClusterKV, and its clusters.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sim/policies/shared/groups.h"

namespace kvspan::policies {

// The clusters of one KV head. A centroid is held as the sum of its keys and their number: products
// with small integers stay exact, so that scores that are equal on paper tie.
class Clusters {
 public:
  explicit Clusters(int dim) : dim_(dim) {}
  // Forms up to `count` clusters of the keys [begin, end). `seed` is the head's own.
  void add(const View& view, int kv_head, TokenIndex begin, TokenIndex end, TokenCount count,
           int iterations, std::uint64_t seed);
  // Marks entries of the best clusters, at most `most`: flags [tokens] 0: dead, 1: living, 2:
  // chosen.
  void choose(std::span<const float> q, std::size_t most, std::vector<char>& flags) const;

 private:
  void pack(const std::vector<float>& rows, std::size_t count, std::vector<float>& panels) const;
  // The nearest centroid of every key by cosine; ties to the lower cluster.
  [[nodiscard]] std::vector<std::size_t> assign(const std::vector<float>& keys,
                                                const std::vector<float>& centroids) const;

  int dim_;
  std::vector<float> centroids_;                  // [clusters][dim] sums of keys
  std::vector<double> counts_;                    // [clusters] keys in them
  std::vector<float> panels_;                     // the same, packed
  std::vector<std::vector<TokenIndex>> members_;  // [clusters] ascending
};

class ClusterSelector final : public Selector {
 public:
  struct Settings {
    TokenCount budget = 0;
    TokenCount sinks = 16;
    TokenCount clusters = 1;
    int iterations = 20;
    TokenCount every = 320;
    TokenCount added = 4;
    bool offload = true;
    bool shared_buffer = false;  // per KV head
    std::uint64_t seed = 0;
    RowIndex prompt = 0;
  };
  ClusterSelector(const Settings& settings, const LayerShape& shape)
      : settings_(settings),
        clusters_(index(shape.kv_heads), Clusters(shape.k_dim)),
        previous_(index(shape.query_heads)) {}
  Needs needs() const override { return {.q = true, .k = true}; }
  void select(const View& view, std::span<Reads> reads) override;

 private:
  void update(const View& view, RowIndex row);
  // Of what was chosen: what the previous row left out of the buffer.
  [[nodiscard]] std::vector<TokenIndex> misses(const LayerShape& shape, int query_head,
                                               const std::vector<TokenIndex>& chosen) const;

  Settings settings_;
  std::vector<Clusters> clusters_;                 // [kv_heads]
  std::vector<std::vector<TokenIndex>> previous_;  // [query_heads] chosen by the previous row
  TokenIndex clustered_ = 0;                       // tokens before it are sinks or in a cluster
};

}  // namespace kvspan::policies
