// SPDX-License-Identifier: Apache-2.0
// Twin of clusterkv.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "tests/twin/decode_policies.h"

namespace kvspan::twin::decode {
namespace {

// Clusters of keys whose centroids promise the most.
struct ClusterKv : Policy {
  using Policy::Policy;
  struct Cluster {
    std::vector<double> sum;
    double count;
    std::vector<int> members;
  };
  void begin(int /*l*/) override {
    clusters.assign(at(w.Hk), {});
    clustered = 0;
    near = false;
  }
  void select(int l, Pass pass) override {
    const int row = pass.begin;
    if (row < w.n || skips(l)) return;
    const int sinks = w.count("sinks", 16), every = w.count("every", 320);
    if (row == w.n) {
      const int count = w.has("clusters") ? w.count("clusters", 1) : std::max(1, w.point / 80);
      for (int h = 0; h < w.Hk; ++h) add(l, h, sinks, w.point, count);
      clustered = w.point;
    }
    for (; row - clustered >= every; clustered += every) {
      for (int h = 0; h < w.Hk; ++h) {
        add(l, h, std::max(sinks, clustered), clustered + every, w.count("added", 4));
      }
    }
    const int budget = w.amount("budget");
    if (row + 1 <= budget) return;
    for (int g = 0; g < w.Hq; ++g) {
      const std::vector<Cluster>& own = clusters[at(g / w.G)];
      std::vector<int> names;
      std::vector<double> scores;
      const std::vector<double> q = w.q(l, g, row);
      for (std::size_t c = 0; c < own.size(); ++c) {
        double dot = 0;
        for (int i = 0; i < w.d; ++i) dot += q[at(i)] * own[c].sum[at(i)];
        names.push_back(static_cast<int>(c));
        scores.push_back(fp32(dot / own[c].count));
      }
      for (std::size_t a = 0; a < scores.size(); ++a) {
        for (std::size_t b = 0; b < scores.size(); ++b) near = near || close(scores[a], scores[b]);
      }
      std::set<int> keys;
      int room = budget - sinks;
      for (const int c : ranking(names, scores)) {
        for (const int j : own[at(c)].members) {
          if (room > 0) {
            keys.insert(j);
            --room;
          }
        }
      }
      chosen[w.reader(l, g, row)] = keys;
      for (int j = 0; j < std::min(sinks, w.n); ++j) keys.insert(j);
      for (int j = clustered; j <= row; ++j) keys.insert(j);
      w.out.active[w.reader(l, g, row)] = {keys.begin(), keys.end()};
      w.decide(l, near);
    }
  }
  // k-means of the keys [from, to) by cosine; centroids are plain means.
  void add(int l, int h, int from, int to, int count) {
    std::vector<int> tokens;
    for (int j = from; j < to; ++j) tokens.push_back(j);
    if (tokens.empty()) return;
    count = std::min(count, static_cast<int>(tokens.size()));
    std::vector<std::vector<double>> mu;
    for (const int j : first_centroids(l, h, tokens, count)) mu.push_back(w.k(l, h, j));
    std::vector<double> members(at(count), 1.0);  // mu is a sum: its scale changes no cosine
    std::vector<int> owner(tokens.size(), -1);
    const int iterations = w.count("iterations", 20);
    const auto assign = [&]() {
      bool moved = false;
      for (std::size_t e = 0; e < tokens.size(); ++e) {
        const std::vector<double> k = w.k(l, h, tokens[e]);
        std::vector<double> cosine;
        for (const auto& m : mu) {
          double dot = 0, mm = 0;  // the key's own norm changes no order
          for (int i = 0; i < w.d; ++i) {
            dot += k[at(i)] * m[at(i)];
            mm += m[at(i)] * m[at(i)];
          }
          cosine.push_back(mm > 0 ? dot / std::sqrt(mm) : 0);
        }
        int top = 0;
        for (int c = 1; c < count; ++c) {
          if (fp32(cosine[at(c)]) > fp32(cosine[at(top)])) top = c;
        }
        for (int c = 0; c < count; ++c) near = near || close(cosine[at(c)], cosine[at(top)]);
        moved = moved || owner[e] != top;
        owner[e] = top;
      }
      return moved;
    };
    assign();
    for (int i = 0; i < iterations; ++i) {
      for (int c = 0; c < count; ++c) {
        std::vector<double> sum(at(w.d), 0.0);
        int size = 0;
        for (std::size_t e = 0; e < tokens.size(); ++e) {
          if (owner[e] != c) continue;
          ++size;
          const std::vector<double> k = w.k(l, h, tokens[e]);
          for (int x = 0; x < w.d; ++x) sum[at(x)] += k[at(x)];
        }
        if (size == 0) continue;
        mu[at(c)] = sum;
        members[at(c)] = size;
      }
      if (!assign()) break;
    }
    for (int c = 0; c < count; ++c) {
      Cluster made{mu[at(c)], members[at(c)], {}};
      for (std::size_t e = 0; e < tokens.size(); ++e) {
        if (owner[e] == c) made.members.push_back(tokens[e]);
      }
      clusters[at(h)].push_back(made);
    }
  }
  // Distinct keys, drawn at random; they number the clusters in their order.
  [[nodiscard]] std::vector<int> first_centroids(int l, int h, const std::vector<int>& tokens,
                                                 int count) const {
    const auto seed = static_cast<std::uint64_t>(w.count("seed", 0));
    const auto head = static_cast<std::uint64_t>(w.t.layers[at(l)].model_layer * 65536 + h);
    std::vector<double> draws;
    for (const int j : tokens) {
      draws.push_back(fp32(uniform(mix(seed) ^ mix(head), {tokens[0], j - tokens[0]})));
    }
    std::vector<int> order = ranking(tokens, draws);
    order.resize(at(count));
    std::sort(order.begin(), order.end());
    return order;
  }
  [[nodiscard]] bool offloads() const { return w.word("offload", "on") == "on"; }
  bool on_device(int l, int j, int row) override {
    // Entries leave when the first row is near that does not read all of them.
    const int begin = row < w.n ? w.point : row;  // of the row's pass
    if (!offloads() || skips(l) || row < w.point || begin + 1 <= w.amount("budget")) return true;
    return j >= begin;
  }
  // Copied in: selected entries that the buffer does not hold from the row before.
  long long loads(int l, int h, int row) override {
    if (row < w.n || skips(l) || !offloads() || row + 1 <= w.amount("budget")) {
      return Policy::loads(l, h, row);
    }
    std::set<int> copied, before;
    const bool shared = w.word("buffers", "query") == "kv";
    for (int g = h * w.G; g < (h + 1) * w.G && shared; ++g) {
      const auto& past = chosen[w.reader(l, g, row - 1)];
      before.insert(past.begin(), past.end());
    }
    for (int g = h * w.G; g < (h + 1) * w.G; ++g) {
      if (!shared) before = chosen[w.reader(l, g, row - 1)];
      for (const int j : chosen[w.reader(l, g, row)]) {
        if (!before.count(j) && w.reads(l, row, j)) copied.insert(j);
      }
    }
    return static_cast<long long>(copied.size());
  }
  // Per KV head: centroids, sizes and prefix sums, and the order of the clustered entries.
  // With offload, a preallocated buffer (the row's own entry in it is counted as an entry), slot
  // maps of the query heads, and tables that all layers share.
  long long overhead(int row, long long /*entries*/) override {
    if (row < w.point) return 0;
    long long layers = 0;
    for (int l = 0; l < w.L; ++l) layers += !skips(l);
    const int sinks = w.count("sinks", 16), every = w.count("every", 320);
    const int budget = w.amount("budget");
    const long long now = (w.has("clusters") ? w.count("clusters", 1) : std::max(1, w.point / 80)) +
                          (row - w.point) / every * w.count("added", 4);
    const long long meta =
        layers * w.Hk * (now * (2 * w.d + 8) + 4LL * std::max(0, row + 1 - sinks));
    if (!offloads() || row + 1 <= budget) return meta;
    const long long entry = (w.d + w.t.v_head_dim) * 2;
    const int buffers = w.word("buffers", "query") == "kv" ? w.Hk : w.Hq;
    const long long slots = 4LL * w.Hq * (budget - 1);
    return meta + layers * ((buffers * (sinks + budget + every) - w.Hk) * entry + slots) +
           (row + 1LL) * (w.Hq * 6 + w.Hk * 4);
  }
  std::vector<std::vector<Cluster>> clusters;   // [kv_heads]
  std::map<std::size_t, std::set<int>> chosen;  // [reader] clustered entries selected
  int clustered = 0;                            // tokens from here on are in no cluster
  bool near = false;
};

}  // namespace

std::unique_ptr<Policy> clusterkv(World& w) { return std::make_unique<ClusterKv>(w); }

}  // namespace kvspan::twin::decode
