// SPDX-License-Identifier: Apache-2.0
// ClusterKV: keys are clustered by direction once the prompt is there, and a generated token reads
// the clusters whose centroids have the largest inner product with its query.
//   clusters   k-means of the prompt's keys behind the sinks, per KV head: cosine similarity, seeded
//              random keys as first centroids, centroid = plain mean; n' / 80 clusters
//   decode     every `every` generated tokens these alone form `added` more clusters
//   reads      sinks, the best clusters up to budget - sinks entries (the last one cut in stored
//              order), and the tokens that are not yet in a cluster; everything while T <= budget
// The model's first `skip` layers are left alone. offload=on: entries live on the host, and the device
// holds a preallocated buffer per query head (as in the authors' code) or per KV head, which keeps
// what the previous row selected: entries read are those copied in.
// Source: Liu et al., arXiv 2412.03213; code sjtu-zhao-lab/ClusterKV (accuracy/cluster_attention.py).
// Conflicts: `added` is 4 in the paper and 8 in the efficiency code; the accuracy code clusters no
// generated token, has 400 clusters whatever the prompt, and no more budget than the prompt is long;
// the efficiency code reserves one sink. The paper is followed.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "sim/base/random.h"
#include "sim/policies/shared/kernels.h"
#include "sim/policies/shared/selection.h"

namespace kvspan::policies {
namespace {

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

// The clusters of one KV head. A centroid is held as the sum of its keys and their number: products
// with small integers stay exact, so that scores that are equal on paper tie.
class Clusters {
 public:
  explicit Clusters(int dim) : dim_(dim) {}

  // Forms up to `count` clusters of the keys [begin, end). `seed` is the head's own.
  void add(const View& view, int kv_head, TokenIndex begin, TokenIndex end, TokenCount count,
           int iterations, std::uint64_t seed) {
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

  // Marks entries of the best clusters, at most `most`: flags [tokens] 0: dead, 1: living, 2: chosen.
  void choose(std::span<const float> q, std::size_t most, std::vector<char>& flags) const {
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

 private:
  void pack(const std::vector<float>& rows, std::size_t count, std::vector<float>& panels) const {
    const auto tokens = static_cast<std::int64_t>(count);
    panels.assign(index(kernels::padded(tokens) * dim_), 0.0F);
    kernels::pack_keys(rows.data(), tokens, dim_, dim_, panels.data());
  }

  // The nearest centroid of every key by cosine; ties to the lower cluster.
  [[nodiscard]] std::vector<std::size_t> assign(const std::vector<float>& keys,
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
                      static_cast<std::int64_t>(width) / kernels::kPanel, 1.0F, 0.0F,
                      results.data());
      for (std::size_t r = 0; r < rows; ++r) {
        float* row = results[r];
        for (std::size_t j = 0; j < c; ++j)
          row[j] = static_cast<float>(static_cast<double>(row[j]) / norms[j]);
        out[begin + r] = index(std::max_element(row, row + c) - row);
      }
    }
    return out;
  }

  int dim_;
  std::vector<float> centroids_;                  // [clusters][dim] sums of keys
  std::vector<double> counts_;                    // [clusters] keys in them
  std::vector<float> panels_;                     // the same, packed
  std::vector<std::vector<TokenIndex>> members_;  // [clusters] ascending
};

class ClusterSelector final : public Selector {
 public:
  ClusterSelector(const Settings& settings, const LayerShape& shape)
      : settings_(settings),
        clusters_(index(shape.kv_heads), Clusters(shape.k_dim)),
        previous_(index(shape.query_heads)) {}
  Needs needs() const override { return {.q = true, .k = true}; }

  void select(const View& view, std::span<Reads> reads) override {
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

 private:
  void update(const View& view, RowIndex row) {
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

  // Of what was chosen: what the previous row left out of the buffer.
  [[nodiscard]] std::vector<TokenIndex> misses(const LayerShape& shape, int query_head,
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

  Settings settings_;
  std::vector<Clusters> clusters_;                 // [kv_heads]
  std::vector<std::vector<TokenIndex>> previous_;  // [query_heads] chosen by the previous row
  TokenIndex clustered_ = 0;                       // tokens before it are sinks or in a cluster
};

// Clusters of one KV head while `row` attends.
TokenCount clusters_at(const Settings& s, RowIndex row) {
  return s.clusters + s.added * ((row - s.prompt) / s.every);
}

}  // namespace

PolicyEntry clusterkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "clusterkv";
  entry.kind = MethodKind::offload;
  entry.summary = "reads the clusters of keys nearest to the query; the cache may live on the host";
  entry.source = "Liu et al. 2024, arXiv 2412.03213";
  entry.evidence = "code read (accuracy), secondary (paper)";
  entry.differs =
      "4 new clusters per 320 tokens in the paper, 8 in the efficiency code, none in the "
      "accuracy code (added=); the code's buffers are per query head (buffers=query)";
  entry.needs = "q and k";
  Parameter budget = budget_parameter("1024");
  budget.help = "sinks and clustered entries that a query head reads in a row";
  entry.parameters = {
      budget,
      {.name = "sinks",
       .fallback = "16",
       .unit = "tokens",
       .help = "first tokens, always read, never clustered",
       .range = {0, 1e9}},
      {.name = "clusters",
       .fallback = "auto",
       .help = "of the prompt; auto: a token in 80",
       .range = {1, 1e9}},
      {.name = "iterations", .fallback = "20", .help = "of k-means, at most", .range = {0, 10000}},
      {.name = "every",
       .fallback = "320",
       .unit = "tokens",
       .help = "generated tokens that are clustered together",
       .range = {1, 1e9}},
      {.name = "added", .fallback = "4", .help = "clusters that they form", .range = {1, 1e9}},
      {.name = "skip",
       .fallback = "2",
       .unit = "layers",
       .help = "first layers of the model, left alone",
       .range = {0, 1e6}},
      {.name = "offload",
       .kind = Kind::word,
       .fallback = "on",
       .help = "the cache lives on the host, or on the device",
       .choices = {"on", "off"}},
      {.name = "buffers",
       .kind = Kind::word,
       .fallback = "query",
       .help = "device buffers of selected entries: per query head, or per KV head",
       .choices = {"query", "kv"}},
      seed_parameter("of the first centroids")};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Settings s;
    s.budget = entries_of(arguments, "budget", geometry);
    s.sinks = arguments.count("sinks");
    s.prompt = geometry.evict_at;
    if (!arguments.has("clusters"))
      arguments.set("clusters", std::to_string(std::max<RowIndex>(1, s.prompt / 80)));
    s.clusters = arguments.count("clusters");
    s.iterations = static_cast<int>(arguments.count("iterations"));
    s.every = arguments.count("every");
    s.added = arguments.count("added");
    s.offload = arguments.is("offload", "on");
    s.shared_buffer = arguments.is("buffers", "kv");
    s.seed = seed_of(arguments, geometry);
    Recipe recipe;
    recipe.full_layers = static_cast<int>(arguments.count("skip"));
    recipe.selector = own(SelectorFactory(
        [s](const LayerShape& shape) { return std::make_unique<ClusterSelector>(s, shape); }));
    const std::int64_t layers = std::count_if(geometry.layer_ids.begin(), geometry.layer_ids.end(),
                                              [&](int id) { return id >= recipe.full_layers; });
    const Geometry g = geometry;
    // Per KV head: centroids, sizes and prefix sums (int32), and the entries in cluster order (int32).
    const auto clusters = [s, g, layers](RowIndex row) {
      if (row < s.prompt) return std::int64_t{0};
      const TokenCount c = clusters_at(s, row);
      return layers * g.kv_heads *
             (c * (g.k_dim * g.kv_bytes + 8) + 4 * std::max<TokenCount>(0, row + 1 - s.sinks));
    };
    recipe.charge.during = clusters;
    if (s.offload) {
      // Entries leave once some of them are not read. The buffer is preallocated: sinks, budget and
      // the tokens to be clustered next, one of which is the row's own (an entry of its own here).
      // Beside it: slot maps of every query head, and tables that all layers share.
      recipe.store = own(host_storing(
          [s](const Pass& pass) { return pass.end >= pass.evict_at && pass.end + 1 > s.budget; },
          geometry));
      recipe.charge.during = [s, g, layers, clusters](RowIndex row) {
        if (row < s.prompt || row + 1 <= s.budget) return clusters(row);
        const std::int64_t heads = s.shared_buffer ? g.kv_heads : g.query_heads;
        const std::int64_t buffer =
            (heads * (s.sinks + s.budget + s.every) - g.kv_heads) * g.entry_bytes();
        const std::int64_t slots = 4 * g.query_heads * std::max<TokenCount>(0, s.budget - 1);
        const std::int64_t shared = (row + 1) * (g.query_heads * 6 + g.kv_heads * 4);
        return clusters(row) + layers * (buffer + slots) + shared;
      };
      recipe.notes.emplace_back("entries read are those copied from the host");
      recipe.closed_form = false;  // entries that left for the host
      if (geometry.trace == nullptr) recipe.notes.emplace_back(kHostNote);
    }
    recipe.knob = budget_knob(geometry);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
