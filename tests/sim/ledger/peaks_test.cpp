// SPDX-License-Identifier: Apache-2.0
// The instant at which a run holds most.
#include "sim/ledger/peaks.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <boost/graph/adjacency_matrix.hpp>
#include <boost/graph/bron_kerbosch_all_cliques.hpp>
#include <catch2/catch.hpp>

#include "sim/ledger/metrics.h"
#include "tests/support/ledgers.h"

using namespace kvspan;
using namespace kvspan::test;

using Counts = std::vector<std::int64_t>;

TEST_CASE("the layerwise peak of a pass is the largest of its layers' instants", "[peaks]") {
  // Three layers that keep 1 of 4: all of one, what the others hold before or after.
  LayerwisePass pass;
  for (int layer = 0; layer < 3; ++layer) pass.add_layer({2, 2}, {5, 4}, {1, 1}, {});
  CHECK(pass.best().kv == 5 + 2 + 2);  // the first layer: two still hold their past
  // A last layer that peaks above: 1 + 1 + 1 survivors and its own.
  pass.add_layer({2, 2}, {20, 4}, {1, 1}, {});
  CHECK(pass.best().kv == 3 + 20);
  CHECK(pass.best().entries == 3 + 4);
}

TEST_CASE("a peak is one instant and not a sum of two maxima", "[metrics]") {
  Ledger ledger = drawn(3, 0,
                        {{{"00011",  // three entries are quantised at row 3
                           ".0011",  //
                           "..011",  //
                           "...00",  //
                           "....0"}}});
  ledger.charge = {3, 0};
  const Metrics metrics = compute_metrics(ledger, kWhole);
  // row             0   1   2   3   4
  // kv             10  20  30  22  32
  // overhead        3   6   9  12  15
  CHECK(metrics.timeline.resident_bytes == Counts{13, 26, 39, 34, 47});
  CHECK(metrics.peak_bytes == PeakBytes{47, 32, 15, 39, 47, 4});

  ledger.representations[1].device_bytes = 1;
  // kv             10  20  30  13  23
  const Metrics smaller = compute_metrics(ledger, kWhole);
  CHECK(smaller.peak_bytes == PeakBytes{39, 30, 9, 39, 38, 2});  // overhead peaks in row 4
}

TEST_CASE("layerwise prefill adds a copy of the survivors and spares what came before",
          "[metrics]") {
  // Layer 0 keeps one entry after each chunk of two, layer 1 keeps all.
  Ledger ledger = drawn(4, 2,
                        {{{"00....",  //
                           ".000..",  //
                           "..00..",  //
                           "...000",  //
                           "....00",  //
                           ".....0"}},
                         {full_head(6)}});
  ledger.charge = {1, 0};
  const Metrics whole = compute_metrics(ledger, kWhole);
  CHECK(whole.timeline.resident_entries == Counts{2, 4, 5, 7, 7, 9});
  CHECK(whole.peak_bytes == PeakBytes{99, 90, 9, 77, 99, 5});

  // Chunk 2, entries:   l=0: 1 + 2, a copy of 1, past_1 = 2   kv 60, overhead 5
  //                     l=1: after_0 = 1, 2 + 2, no copy      kv 50, overhead 5
  const Metrics layerwise = compute_metrics(ledger, kLayerwise);
  CHECK(layerwise.peak_bytes == PeakBytes{99, 90, 9, 65, 99, 5});
  CHECK(layerwise.per_layer[0].peak_bytes == 10 * (1 + 2 + 1) + 3);
  CHECK(layerwise.per_layer[1].peak_bytes == 66);
  CHECK(layerwise.timeline.resident_bytes == whole.timeline.resident_bytes);

  // Without decode the prefill's peak is the whole peak, at the last row of its pass. Nothing is
  // evicted after the last pass, so that nothing is copied either.
  Ledger prompt_only = drawn(4, 2,
                             {{{"00..",  //
                                ".000",  //
                                "..00",  //
                                "...0"}},
                              {full_head(4)}});
  // Chunk 1:  l=0: 2, a copy of 1;   l=1: after_0 = 1, 2      30 either way
  // Chunk 2:  l=0: 3, past_1 = 2     l=1: after_0 = 3, 4      70
  CHECK(compute_metrics(prompt_only, kLayerwise).peak_bytes == PeakBytes{70, 70, 0, 70, 0, 3});
}

TEST_CASE("the first of equal layers gives the parts of a layerwise peak", "[metrics]") {
  Ledger ledger = drawn(4, 2,
                        {{{"0000.",  //
                           ".000.",  //
                           "..00.",  //
                           "...00",  //
                           "....0"}},
                         {{"0000.",  //
                           ".0000",  //
                           "..000",  //
                           "...00",  //
                           "....0"}}});
  ledger.charge = {10, 0};
  // Chunk 2:  l=0: 2 + 2, a copy of 1, past_1 = 2      kv 70, overhead 60
  //           l=1: after_0 = 1, 2 + 2, a copy of 3     kv 80, overhead 50
  CHECK(compute_metrics(ledger, kLayerwise).peak_bytes == PeakBytes{130, 70, 60, 130, 120, 3});
}

TEST_CASE("an offload copies the survivors, also of entries that come back", "[metrics]") {
  const Ledger ledger = drawn(4, 3,
                              {{{"000233",  // leaves after the first chunk
                                 ".00000",  //
                                 "..0000",  //
                                 "...000",  //
                                 "....00",  //
                                 ".....0"}}});
  CHECK(ledger.plan.ends == std::vector<RowIndex>{3, 4, 5, 6});
  CHECK(compute_metrics(ledger, kLayerwise).peak_bytes.prefill == 30 + 20);
}

TEST_CASE("a peak is at least the mean, and no layout is smaller than ideal", "[metrics][random]") {
  const int seed = GENERATE(take(30, random(0, 1 << 30)));
  LedgerRandom random(static_cast<unsigned>(seed));
  const Ledger ledger = random_ledger(random, 100);
  const Metrics ideal = compute_metrics(ledger, kWhole);
  for (const std::string& layout : standard_layouts()) {
    INFO("seed " << seed << ", layout " << layout);
    const Metrics metrics = compute_metrics(ledger, accounting(layout));
    CHECK(metrics.peak_bytes.total * ledger.plan.tokens >= metrics.byte_rows);
    CHECK(metrics.peak_kv * 2 * static_cast<double>(ledger.plan.tokens) >=
          metrics.footprint * static_cast<double>(ledger.plan.tokens + 1) * (1 - 1e-12));
    CHECK(metrics.byte_rows >= ideal.byte_rows);
    CHECK(metrics.peak_bytes.total >= ideal.peak_bytes.total);
    CHECK(metrics.entry_rows == ideal.entry_rows);
    if (layout != "ideal") CHECK(metrics.peak_bytes == ideal.layouts.at(layout));
  }
}

namespace {

using Graph = boost::adjacency_matrix<boost::undirectedS>;

struct LargestClique {
  std::size_t* size;
  template <class Clique, class G>
  void clique(const Clique& clique, const G& /*graph*/) {
    *size = std::max(*size, clique.size());
  }
};

}  // namespace

TEST_CASE("the peak of a head is the largest clique of its lifetimes' interval graph",
          "[metrics][random]") {
  const int seed = GENERATE(take(60, random(0, 1 << 30)));
  LedgerRandom random(static_cast<unsigned>(seed));
  // Any death after birth: what holds of intervals needs no passes.
  const RowIndex tokens = random.between(2, 22);
  const std::int64_t reach = random.between(1, tokens);
  Ledger ledger = paper_ledger(tokens, 0, 0);
  std::vector<std::uint32_t> deaths;
  for (RowIndex token = 0; token < tokens; ++token) {
    deaths.push_back(
        static_cast<std::uint32_t>(std::min(tokens, token + random.between(1, reach))));
  }
  add_head(ledger, deaths);
  Graph graph(at(tokens));
  for (std::size_t i = 0; i < at(tokens); ++i) {
    for (std::size_t j = i + 1; j < deaths[i]; ++j) boost::add_edge(i, j, graph);
  }
  // Without an edge the algorithm reports nothing: one token is a clique of its own.
  std::size_t largest = 1;
  boost::bron_kerbosch_all_cliques(graph, LargestClique{&largest});

  const Metrics metrics = compute_metrics(ledger, kWhole);
  INFO("seed " << seed);
  CHECK(metrics.peak_bytes.kv == static_cast<std::int64_t>(largest));
  CHECK(metrics.head_peak_kv[0][0] == static_cast<double>(largest) / static_cast<double>(tokens));
}
