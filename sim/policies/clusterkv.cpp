// SPDX-License-Identifier: Apache-2.0
// ClusterKV: keys are clustered by direction once the prompt is there, and a generated token reads
// the clusters whose centroids have the largest inner product with its query.
//   clusters   k-means of the prompt's keys behind the sinks, per KV head: cosine similarity,
//              seeded random keys as first centroids, centroid = plain mean; n' / 80 clusters
//   decode     every `every` generated tokens these alone form `added` more clusters
//   reads      sinks, the best clusters up to budget - sinks entries (the last one cut in stored
//              order), and the tokens that are not yet in a cluster; everything while T <= budget
// The model's first `skip` layers are left alone. offload=on: entries live on the host, and the
// device holds a preallocated buffer per query head (as in the authors' code) or per KV head, which
// keeps what the previous row selected: entries read are those copied in.
// Source: Liu et al., arXiv 2412.03213; code sjtu-zhao-lab/ClusterKV
// (accuracy/cluster_attention.py).
// Conflicts: `added` is 4 in the paper and 8 in the efficiency code. The paper is followed.
//   accuracy code    400 clusters whatever the prompt, of a library's k-means with one more
//                    assignment; clusters no generated token; never selects, however long the
//                    answer, where the prompt was shorter than the budget; sinks inside B
//   efficiency code  sinks on top: 16 + (B - 1) + window entries a row, from T > B + 16 on; first
//                    centroids drawn with replacement, alike for all heads; a token that was just
//                    clustered is also in the window, and read once
#include <algorithm>

#include "sim/policies/clusterkv_rule.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/host_store.h"
#include "sim/policies/shared/pages.h"

namespace kvspan::policies {
namespace {

// Clusters of one KV head while `row` attends.
TokenCount clusters_at(const ClusterSelector::Settings& s, RowIndex row) {
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
      "accuracy code (added=); sinks count in the budget here and in the accuracy code, the "
      "efficiency code reads sinks + budget - 1; the accuracy code never selects after a prompt "
      "shorter than the budget; the code's buffers are per query head (buffers=query)";
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
    ClusterSelector::Settings s;
    s.budget = entries_of(arguments, "budget", geometry);
    s.sinks = arguments.count("sinks");
    s.prompt = geometry.evict_point;
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
    // Per KV head: centroids, sizes and prefix sums (int32), and the entries in cluster order
    // (int32).
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
          [s](const Pass& pass) { return pass.end >= pass.evict_point && pass.end + 1 > s.budget; },
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
