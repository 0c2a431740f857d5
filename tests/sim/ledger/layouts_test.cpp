// SPDX-License-Identifier: Apache-2.0
// Storage layouts: their names, and the bytes of one ledger in each of them.
#include "sim/ledger/layouts.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "sim/ledger/metrics.h"
#include "tests/support/ledgers.h"
#include "tests/twin/twin.h"

using namespace kvspan;
using namespace kvspan::test;

using Counts = std::vector<std::int64_t>;

TEST_CASE("layouts that move nothing copy no survivors", "[metrics][layouts]") {
  const Ledger ledger = drawn(4, 0,
                              {{{"0000.",  //
                                 ".0000",  //
                                 "..000",  //
                                 "...00",  //
                                 "....0"}}});
  const auto prefill = [&](const std::string& layout) {
    return compute_metrics(ledger, accounting(layout, true)).peak_bytes.prefill;
  };
  CHECK(prefill("ideal") == 40 + 30);
  CHECK(prefill("padded") == 40 + 30);
  CHECK(prefill("paged2_per_head_compact") == 40 + 40);
  CHECK(prefill("paged2_per_head") == 40);
  CHECK(prefill("openvino2") == 40);
  CHECK(prefill("masked") == 40);
}

TEST_CASE("layouts are views on one ledger", "[metrics][layouts]") {
  // A prompt of five; head 0 keeps tokens 1 and 4, head 1 token 0. Blocks: {0 1} {2 3} {4 5} {6 7}.
  Ledger ledger = drawn(5, 0,
                        {{{"00000...",  //
                           ".0000000",  //
                           "..000...",  //
                           "...00...",  //
                           "....0000",  //
                           ".....000",  //
                           "......00",  //
                           ".......0"},
                          {"00000000",  //
                           ".0000...",  //
                           "..000...",  //
                           "...00...",  //
                           "....0...",  //
                           ".....0..",  //
                           "......00",  //
                           ".......0"}}});
  ledger.query_heads = 6;
  const auto kv = [&](const std::string& layout) {
    Counts entries = compute_metrics(ledger, accounting(layout)).timeline.resident_bytes;
    for (std::int64_t& bytes : entries) bytes /= 10;
    return entries;
  };
  // row                             0   1   2   3   4   5   6   7
  CHECK(kv("ideal") == Counts{2, 4, 6, 8, 10, 5, 6, 8});
  CHECK(kv("query_head") == Counts{6, 12, 18, 24, 30, 15, 18, 24});
  CHECK(kv("padded") == Counts{2, 4, 6, 8, 10, 6, 8, 10});
  // Head 1 loses block {4 5} at row 6 only: token 5 is in it.
  CHECK(kv("paged2_per_head") == Counts{4, 4, 8, 8, 12, 8, 10, 10});
  CHECK(kv("paged2_per_layer") == Counts{4, 4, 8, 8, 12, 8, 12, 12});
  CHECK(kv("paged2_per_head_compact") == Counts{4, 4, 8, 8, 12, 6, 6, 10});
  CHECK(kv("paged2_per_layer_compact") == Counts{4, 4, 8, 8, 12, 8, 8, 12});
  CHECK(kv("paged16_per_head") == Counts{32, 32, 32, 32, 32, 32, 32, 32});
  CHECK(kv("masked") == Counts{2, 4, 6, 8, 10, 12, 14, 16});
}

TEST_CASE("whole blocks leave OpenVINO's cache, one token before a block beyond its limit",
          "[metrics][layouts]") {
  // Every entry is there for six rows.
  const Ledger ledger = drawn(6, 0,
                              {{{"000000......",  //
                                 ".000000.....",  //
                                 "..000000....",  //
                                 "...000000...",  //
                                 "....000000..",  //
                                 ".....000000.",  //
                                 "......000000",  //
                                 ".......00000",  //
                                 "........0000",  //
                                 ".........000",  //
                                 "..........00",  //
                                 "...........0"}}});
  const auto kv = [&](const std::string& layout) {
    Counts slots = compute_metrics(ledger, accounting(layout)).timeline.resident_bytes;
    for (std::int64_t& bytes : slots) bytes /= 10;
    return slots;
  };
  // Five stay after a row, and the least limit that takes them is three blocks, six tokens: with
  // an eighth token a block is beyond it and leaves.
  // row                       0  1  2  3  4  5  6  7  8  9 10 11
  CHECK(kv("openvino2") == Counts{2, 2, 4, 4, 6, 6, 8, 8, 8, 8, 8, 8});
  // Two blocks of three would take the five, but a start, a middle and a recent area are three.
  CHECK(kv("openvino3") == Counts{3, 3, 3, 6, 6, 6, 9, 9, 9, 12, 12, 12});
  CHECK(kv("openvino16") == Counts(12, 16));
  CHECK(openvino_held(79, 60, 16) == 79);  // a limit of 64, and 15 more
  CHECK(openvino_held(80, 60, 16) == 64);
  CHECK(openvino_held(200, 60, 16) == 72);  // eight blocks leave, and the tail is half full
  CHECK(openvino_held(31, 0, 8) == 31);
  CHECK(openvino_held(32, 0, 8) == 24);
}

TEST_CASE("a block that fills without eviction peaks at the end of its pass",
          "[metrics][layouts]") {
  const Ledger ledger = drawn(4, 0, {{full_head(6)}});
  CHECK(compute_metrics(ledger, accounting("paged16_per_head")).peak_bytes ==
        PeakBytes{160, 160, 0, 160, 160, 3});
}

TEST_CASE("a block leaves the device with the last entry that is offloaded", "[metrics][layouts]") {
  const Ledger ledger = drawn(2, 0,
                              {{{"00222",  //
                                 ".0022",  //
                                 "..000",  //
                                 "...00",  //
                                 "....0"}}});
  CHECK(compute_metrics(ledger, accounting("paged2_per_head")).timeline.resident_bytes ==
        Counts{20, 20, 40, 20, 40});
}

TEST_CASE("metrics list every standard layout but the chosen one", "[metrics][layouts]") {
  const Ledger ledger = drawn(4, 0, {{full_head(6)}});
  std::vector<std::string> expected = standard_layouts();
  std::sort(expected.begin(), expected.end());
  const std::string chosen = GENERATE(as<std::string>{}, "ideal", "masked", "paged32_per_layer");
  std::vector<std::string> found;
  for (const auto& [name, peak] : compute_metrics(ledger, accounting(chosen)).layouts) {
    found.push_back(name);
  }
  std::erase(expected, chosen);
  CHECK(found == expected);
}

TEST_CASE("layout names are parsed and a wrong one names the nearest", "[metrics][layouts]") {
  for (const std::string& name : standard_layouts()) CHECK_NOTHROW(parse_layout(name));
  const Layout layout = parse_layout("paged32_per_layer_compact");
  CHECK(layout.kind == Layout::Kind::paged);
  CHECK(layout.block_size == 32);
  CHECK(layout.per_layer);
  CHECK(layout.compact);
  CHECK_FALSE(parse_layout("paged1_per_head").per_layer);
  CHECK(parse_layout("openvino").block_size == 32);
  CHECK(parse_layout("openvino16").block_size == 16);

  CHECK_THROWS_WITH(parse_layout("paded"), Catch::Contains("did you mean 'padded'?"));
  const std::string wrong = GENERATE(
      as<std::string>{}, "", "Ideal", "paged", "paged_per_head", "paged0_per_head",
      "paged016_per_head", "paged-4_per_head", "paged16", "paged16_per_head_", "paged16_compact",
      "paged16_per_heads", "paged1048577_per_head", "paged99999999999999999999_per_head",
      "openvino0", "openvino32", "openvino016", "openvino16_per_head");
  INFO(wrong);
  CHECK_THROWS_AS(parse_layout(wrong), kvspan::ConfigError);
  const Ledger ledger = drawn(2, 0, {{full_head(4)}});
  CHECK_THROWS_AS(compute_metrics(ledger, accounting(wrong)), kvspan::ConfigError);
}

TEST_CASE("layout peaks equal the twin's", "[metrics][random]") {
  const int seed = GENERATE(take(200, random(0, 1 << 30)));
  LedgerRandom random(static_cast<unsigned>(seed));
  Ledger ledger;
  kvspan::twin::Trace trace;
  kvspan::twin::Plan plan;
  trace.tokens = static_cast<int>(random.between(1, 120));
  trace.prompt_tokens = static_cast<int>(random.between(1, trace.tokens));
  plan.chunk = static_cast<int>(random.between(0, 20));
  if (random.chance(30))
    plan.evict_point = static_cast<int>(random.between(1, trace.prompt_tokens));
  trace.kv_heads = static_cast<int>(random.between(1, 3));
  trace.query_heads = trace.kv_heads * static_cast<int>(random.between(1, 3));
  trace.head_dim = 4;
  trace.v_head_dim = 3;
  trace.model_layers = static_cast<int>(random.between(1, 3));
  trace.layers.resize(at(trace.model_layers));
  // Stored sets of KV heads, or one a query head.
  ledger.heads = random.chance(30) ? trace.query_heads : trace.kv_heads;
  ledger.query_heads = trace.query_heads;
  ledger.layers = ledger.model_layers = trace.model_layers;
  ledger.plan =
      make_passes(trace.tokens, trace.prompt_tokens,
                  plan.evict_point < 0 ? trace.prompt_tokens : plan.evict_point, plan.chunk);
  ledger.representations = {{"entry", 14, 0}};
  ledger.charge.entry = random.between(0, 20);
  std::vector<int> deaths;
  for (int head = 0; head < ledger.layers * ledger.heads; ++head) {
    const std::int64_t reach = random.between(0, 60);
    for (int token = 0; token < trace.tokens; ++token) {
      const auto end =
          std::upper_bound(ledger.plan.ends.begin(), ledger.plan.ends.end(),
                           std::min<RowIndex>(token + random.between(0, reach), trace.tokens - 1));
      deaths.push_back(static_cast<int>(random.chance(80) ? *end : trace.tokens));
      ledger.death.push_back(static_cast<std::uint32_t>(deaths.back()));
    }
  }
  INFO("seed " << seed);
  const Metrics metrics = compute_metrics(ledger, kWhole);
  const auto twin = [&](const std::string& layout) {
    return kvspan::twin::layout_peak(layout, trace, plan, deaths, ledger.heads, 2,
                                     ledger.charge.entry);
  };
  CHECK(metrics.peak_bytes.total == twin("ideal"));
  for (const auto& [name, peak] : metrics.layouts) {
    INFO(name);
    CHECK(peak.total == twin(name));
    CHECK(peak.total == peak.kv + peak.overhead);
    CHECK(peak.total == std::max(peak.prefill, peak.decode));
    CHECK(peak.total >= metrics.peak_bytes.total);
  }
}
