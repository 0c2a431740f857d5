// SPDX-License-Identifier: Apache-2.0
// What is written at all: write_gate, by worked examples, bytes and bounds.
#include <algorithm>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/models/model_geometry.h"
#include "sim/predict/analytic.h"
#include "tests/support/cases.h"
#include "tests/support/files.h"
#include "tests/support/selector_bench.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::alive_after;
using test::attention;
using test::deaths;
using test::random_trace;
using test::Table;
using test::weights;

TEST_CASE("write_gate drops what was not admitted when it leaves the window",
          "[policy][write_gate]") {
  // Window 2, prompt 5: row 5 reads itself and 4, so 0..3 are outside at the prompt's end; the rows
  // 6 and 7 push out 4 and 5.
  const Trace trace = weights({0, 0, 0, 0, 0, 0, 0, 0}, 5);
  const Table file("gates", {1, 1, 8}, {.9, .05, .1, .05, .5, 0, 0, 0});
  const std::string spec = fmt::format("write_gate(gate=file,window=2,weights=\"{}\"", file.name());
  CHECK(deaths(trace, spec + ")") == std::vector<int>{8, 5, 5, 5, 8, 7, 8, 8});
  CHECK(deaths(trace, spec + ",tau=0.04)") == std::vector<int>{8, 8, 8, 8, 8, 7, 8, 8});
  CHECK(deaths(trace, spec + ",tau=0.6)") == std::vector<int>{8, 5, 5, 5, 6, 7, 8, 8});
}

TEST_CASE("the local window of write_gate counts the row itself", "[policy][write_gate]") {
  // Bug: row 310 read 257. Nobody is admitted.
  const Trace trace = weights(std::vector<double>(320, 0.0), 300);
  const Table file("gates", {1, 1, 320}, std::vector<double>(320, 0.0));
  const auto timeline = [&](const std::string& more) {
    return test::run_one(
               trace, fmt::format("write_gate(gate=file,weights=\"{}\"{})", file.name(), more), {})
        .metrics.timeline;
  };
  CHECK(timeline("").resident_entries[310] == 256);
  CHECK(timeline("").active_entries[310] == 256);
  CHECK(timeline("").active_entries[299] == 256);
  // Row 127 of a prompt reads 112 .. 127; in the kernel its block of rows 64 .. 127 begins at 49,
  // and the first one at 0.
  CHECK(timeline(",window=16").active_entries[127] == 16);
  CHECK(timeline(",window=16,mask=kernel").active_entries[127] == 127 - 49 + 1);
  CHECK(timeline(",window=16,mask=kernel").active_entries[64] == 16);
  CHECK(timeline(",window=16,mask=kernel").active_entries[63] == 64);
  CHECK(timeline(",window=16,mask=kernel").resident_entries[310] == 16);
}

TEST_CASE("write_gate judges one entry a row, from the first that is full on",
          "[policy][write_gate]") {
  // Only token 3 passes, which is the last to leave before the end; window 4, N = 9.
  const Table file("gates", {1, 1, 9}, {0, 0, 0, 1, 0, 0, 0, 0, 0});
  const auto dead = [&](int prompt) {
    return deaths(weights(std::vector<double>(9, 0.0), prompt),
                  fmt::format("write_gate(gate=file,window=4,weights=\"{}\")", file.name()));
  };
  CHECK(dead(2) == std::vector<int>{4, 5, 6, 9, 8, 9, 9, 9, 9});  // first decision: after row 3
  CHECK(dead(4) == std::vector<int>{4, 5, 6, 9, 8, 9, 9, 9, 9});  // n = window
  CHECK(dead(5) == std::vector<int>{5, 5, 6, 9, 8, 9, 9, 9, 9});  // n = window + 1
}

TEST_CASE("the slip of AdaEA++ admits every generated token", "[policy][write_gate]") {
  const Trace trace = random_trace(60, 40, 4);
  const auto d = deaths(trace, "write_gate(gate=adaea,window=4,rate=1%,call_sinks=true)");
  CHECK(std::all_of(d.begin() + 40, d.end(), [](int row) { return row == 60; }));
  const auto without = deaths(trace, "write_gate(gate=adaea,window=4,rate=1%)");
  CHECK(std::vector<int>(d.begin(), d.begin() + 40) ==
        std::vector<int>(without.begin(), without.begin() + 40));
  CHECK(std::count(without.begin() + 40, without.end(), 60) < 20);
  CHECK_THROWS_WITH(make_policy("write_gate(gate=random,call_sinks=true)", geometry_of(trace, {})),
                    Contains("call_sinks=true is of gate=adaea"));
}

TEST_CASE("under a write gate quest reads pages of admitted entries", "[policy][write_gate]") {
  // Every fifth token is admitted, window 16. In row 200 these are 0 .. 180: page 0 ends with 75,
  // page 1 with 155, and page 2, from 160 on, is being filled. Key 100, in page 1, is the largest.
  std::vector<float> keys(201, 0.0F);
  keys[100] = 9;
  const auto read = [&](const std::string& quest) {
    test::SelectorBench bench(
        {{test::numbers(std::vector<float>(201, 1.0F))}, {test::numbers(keys)}, 200},
        "write_gate(gate=random,window=16)+" + quest);
    for (int t = 0; t < 185; ++t) {
      if (t % 5 != 0) bench.evict(0, t);
    }
    return bench.next()[0];
  };
  const auto tokens = [](std::vector<std::pair<int, int>> pages) {
    test::Tokens out;
    for (const auto& [first, last] : pages) {
      for (int t = first; t <= last; t += 5) out.push_back(t);
    }
    for (int t = 185; t <= 200; ++t) out.push_back(t);
    return out;
  };
  // 16 local tokens, then the open page, then the best full one.
  CHECK(read("quest(budget=16,least=0)") == tokens({}));
  CHECK(read("quest(budget=17,least=0)") == tokens({{160, 180}}));
  CHECK(read("quest(budget=32,least=0)") == tokens({{160, 180}}));
  CHECK(read("quest(budget=33)") == tokens({{80, 155}, {160, 180}}));
  CHECK(read("quest(budget=1,least=3)") == tokens({{80, 155}, {160, 180}}));
  CHECK(read("quest(budget=1)") == tokens({}));
  CHECK(read("quest(budget=64)") == tokens({{0, 75}, {80, 155}, {160, 180}}));
  CHECK(read("quest(budget=32,least=0,last_page=false)") == tokens({{80, 155}}));
  keys[100] = -9;
  CHECK(read("quest(budget=48)") == tokens({{0, 75}, {160, 180}}));
}

TEST_CASE("under a write gate quest chooses as WG-KV does: per KV head, in every layer",
          "[policy][write_gate]") {
  // One head of the group wants page 0, where key 50 is -20, the other page 1, where key 100 is 9.
  std::vector<float> keys(201, 0.0F);
  keys[50] = -20;
  keys[100] = 9;
  const auto read = [&](const std::string& quest) {
    test::HeadVectors vectors{{test::numbers(std::vector<float>(201, -1.0F)),
                               test::numbers(std::vector<float>(201, 1.0F))},
                              {test::numbers(keys)},
                              200};
    vectors.layer = 0;
    test::SelectorBench bench(std::move(vectors), "write_gate(gate=random,window=16)+" + quest);
    for (int t = 0; t < 185; ++t) {
      if (t % 5 != 0) bench.evict(0, t);
    }
    const std::vector<test::Tokens> both = bench.next();
    return std::pair{both[0].front(), both[1].front()};  // the page's first token
  };
  CHECK(read("quest(budget=33)") == std::pair{0, 0});
  CHECK(read("quest(budget=33,per=query)") == std::pair{0, 80});
  CHECK(read("quest(budget=33,per=query,skip=1)") == std::pair{0, 0});  // everything
}

TEST_CASE("quest under a write gate packs what a cap leaves, and charges what is held",
          "[policy][write_gate]") {
  // Everything is admitted, window 2, pages of 2; then 1 and 2 leave: pages {0, 3} {4, 5} {6}.
  const std::vector<float> keys = {9, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0};
  test::SelectorBench bench(
      {{test::numbers(std::vector<float>(11, 1.0F))}, {test::numbers(keys)}, 8},
      "write_gate(gate=random,rate=100%,window=2)+quest(page=2,budget=6,least=0)");
  CHECK(bench.next()[0] == test::Tokens{0, 1, 6, 7, 8});  // open: 6; best: {0, 1}
  bench.evict(0, 1);
  bench.evict(0, 2);
  // Row 9: {0, 3} {4, 5} {6, 7} are full, and two are read.
  CHECK(bench.next()[0] == test::Tokens{0, 3, 4, 5, 8, 9});
  // Bounds of 2 x head_dim x 2 bytes a page of 16, by entry.
  const Geometry g = test::llama_8b(8192, 512);
  const Policy policy = make_policy("write_gate(gate=random)+quest", g);
  CHECK(policy.charge.entry == 2 * 128 * 2 / 16);
  CHECK(policy.charge.at(8703) == make_policy("write_gate(gate=random)", g).charge.at(8703));
  // The published 6,078 bounds for 48,616 stored tokens are of 3,039 pages; by entry, 6,077.
  CHECK(48616 * policy.charge.entry / 256 == 6077);
}

TEST_CASE("prompt rows read their window and the admitted keys", "[policy][write_gate]") {
  // Equal logits, key 0 admitted: row r reads min(r + 1, 2) of its window and key 0 from row 2 on.
  //   rows 0..4: 1/1, 2/2, 3/3, 3/4, 3/5
  const Trace trace = weights({0, 0, 0, 0, 0, 0}, 5);
  const Table file("gates", {1, 1, 6}, {.9, 0, 0, 0, 0, 0});
  const std::string spec = fmt::format("write_gate(gate=file,window=2,weights=\"{}\"", file.name());
  CHECK(test::run_one(trace, spec + ")", {}).fidelity->prefill->mass_mean ==
        Approx((3 + 0.75 + 0.6) / 5));
  CHECK(test::run_one(trace, spec + ",masks_prefill=false)", {}).fidelity->prefill->mass_mean == 1);
}

TEST_CASE("write_gate admits the rate it was asked for", "[policy][write_gate]") {
  const Trace trace = random_trace(70, 60, 4);
  for (const char* gate : {"oracle", "oracle_out", "logit", "mlp", "adaea"}) {
    for (const int rate : {1, 25, 50, 100}) {
      INFO(gate << " " << rate);
      // One percent of the fit's samples is none: with one class, all gates are equal.
      if (rate == 1 && (std::string(gate) == "logit" || std::string(gate) == "mlp")) continue;
      const RunResult run = test::run_one(
          trace, fmt::format("write_gate(gate={},rate={}%,window=10)", gate, rate), {});
      int admitted = 0;
      for (int l = 0; l < 2; ++l) {
        for (int h = 0; h < 2; ++h) {
          const auto d = run.ledger.deaths(l, h);
          for (std::size_t t = 0; t < 50; ++t) admitted += d[t] > 60 ? 1 : 0;
          for (std::size_t t = 51; t < 60; ++t) CHECK(d[t] > 60);
        }
      }
      const int wanted = 4 * 50 * rate / 100;
      if (std::string(gate) == "adaea") {  // ties of quantiles, and sinks
        CHECK(admitted == Approx(std::max(wanted, 16)).margin(8));
      } else {
        CHECK(admitted == wanted);
      }
    }
  }
  const RunResult run =
      test::run_one(random_trace(400, 380, 4), "write_gate(gate=random,rate=30%,window=10)", {});
  CHECK(run.metrics.timeline.resident_entries[380] == Approx(4 * (10 + .3 * 370)).margin(60));
}

TEST_CASE("the oracle gate admits by the largest probability behind the window",
          "[policy][write_gate]") {
  const test::TraceSpec spec = test::random_spec(
      {.layers = 1, .tokens = 24, .prompt_tokens = 20, .query_heads = 2, .kv_heads = 1});
  const auto a = attention(spec, 0);
  std::vector<double> utility;
  for (std::size_t i = 0; i < 16; ++i) {  // window 4
    double best = 0;
    for (std::size_t r = i + 4; r < 24; ++r) best = std::max({best, a[0][r][i], a[1][r][i]});
    utility.push_back(best);
  }
  const auto d = deaths(test::make_trace(spec), "write_gate(gate=oracle,rate=50%,window=4)");
  std::vector<double> sorted = utility;
  std::sort(sorted.rbegin(), sorted.rend());
  for (std::size_t i = 0; i < 16; ++i) CHECK((d[i] > 20) == (utility[i] > sorted[8]));
}

TEST_CASE("the gates' bytes are those of the published models", "[policy][write_gate]") {
  struct Row {
    const char* model;
    const char* hidden;
    std::int64_t parameters;
    const char* mib;
  };
  for (const Row& row :
       {Row{"Llama-3.1-8B", "4", 33825024, "64.52"}, Row{"Qwen3-4B", "1.5", 14275872, "27.23"}}) {
    const Geometry g = geometry_of(load_model(row.model), 1000, 24, 0, 2);
    const Policy policy = make_policy(fmt::format("write_gate(hidden={})", row.hidden), g);
    const std::int64_t heads = std::int64_t{g.layers()} * 8;
    CHECK(policy.charge.once == 2 * row.parameters + 4 * heads * 64 + heads * 256);
    CHECK(fmt::format("{:.2f}", static_cast<double>(2 * row.parameters) / 1048576) == row.mib);
    CHECK_FALSE(policy.closed_form);
  }
}

TEST_CASE("the full cache of the published memory figure is pool plus block table",
          "[policy][write_gate][analytic]") {
  // MiB at 100,000 to 500,000 prompt tokens and 300 generated ones, blocks of 16; the table is
  // sized for 1,000 more tokens than the prompt.
  struct Row {
    const char* model;
    std::vector<double> mib;
  };
  for (const Row& row : {Row{"Llama-3.1-8B", {12544.17, 25050.27, 37556.37, 50062.48}},
                         Row{"Qwen3-4B", {14112.19, 28181.55, 42250.92, 56320.29, 70389.65}}}) {
    for (std::size_t i = 0; i < row.mib.size(); ++i) {
      const auto prompt = static_cast<std::int64_t>(i + 1) * 100000;
      const Geometry g = geometry_of(load_model(row.model), prompt, 300, 0, 2);
      Accounting paged;
      paged.layout = "paged16_per_head_compact";
      const std::int64_t pool = predict(make_policy("full", g), g, paged).peak_bytes.kv;
      const Geometry longer = geometry_of(load_model(row.model), prompt, 1000, 0, 2);
      const std::int64_t table = make_policy("write_gate(gate=random)", longer).charge.once -
                                 std::int64_t{g.layers()} * 8 * 256;
      INFO(row.model << " " << prompt);
      CHECK(static_cast<double>(pool + table) / 1048576 == Approx(row.mib[i]).margin(0.0051));
    }
  }
}

TEST_CASE("the cap drops a tenth of every head's entries beyond the window",
          "[policy][write_gate]") {
  // Everything is admitted; window 4. Prompt 30: 26 beyond it > 10, so 2 leave; then each row adds
  // one and 2 leave of 25, 24, ...: 24, 23 - 2 of 25 = 23, 22, 21.
  const Trace trace = random_trace(34, 30, 6);
  const RunResult run =
      test::run_one(trace, "write_gate(gate=random,rate=100%,window=4,cap=10)", {});
  for (int l = 0; l < 2; ++l) {
    for (int h = 0; h < 2; ++h) {
      const auto span = run.ledger.deaths(l, h);
      const std::vector<int> d(span.begin(), span.end());
      CHECK(alive_after(d, 30) == 4 + 24);
      CHECK(alive_after(d, 31) == 4 + 23);
      CHECK(alive_after(d, 32) == 4 + 22);
      for (std::size_t t = 26; t < 30; ++t) CHECK(d[t] > 30);
    }
  }
  CHECK(deaths(trace, "write_gate(gate=random,rate=100%,window=4,cap=40)") ==
        std::vector<int>(34, 34));
}

TEST_CASE("the cap of the model is over the heads of all layers", "[policy][write_gate]") {
  // Layer 0 admits everything, layer 1 nothing; window 4. After a prompt of 30 layer 0 holds 26
  // beyond it: 26 on average of its heads, 13 of the model's.
  const Trace trace = random_trace(34, 30, 6);
  std::vector<double> gates(std::size_t{2} * 2 * 34, 0.0);
  std::fill_n(gates.begin(), 2 * 34, 0.9);
  const Table file("gates", {2, 2, 34}, gates);
  const std::string spec =
      fmt::format("write_gate(gate=file,window=4,masks_prefill=false,weights=\"{}\",", file.name());
  const auto alive = [&](const std::string& cap) {
    std::vector<int> out;
    const auto d = deaths(trace, spec + cap);
    for (const int row : {30, 31, 32}) out.push_back(alive_after(d, row) - 4);
    return out;
  };
  CHECK(alive("cap=13)") == std::vector<int>{24, 23, 22});
  // 26, 27 - 2, 26: 13.5 on average exceeds it in row 30 alone.
  CHECK(alive("cap=13,cap_over=model)") == std::vector<int>{26, 25, 26});
  CHECK(alive("cap=12,cap_over=model)") == std::vector<int>{24, 23, 24});
}

TEST_CASE("write_gate composes with a post-fill eviction", "[policy][write_gate]") {
  const Trace trace = random_trace(60, 50, 6);
  const RunResult run = test::run_one(
      trace, "write_gate(gate=oracle,rate=50%,window=8)+snapkv(budget=12,window=4)", {});
  for (int l = 0; l < 2; ++l) {
    for (int h = 0; h < 2; ++h) {
      const auto d = run.ledger.deaths(l, h);
      CHECK(alive_after({d.begin(), d.end()}, 50) <= 12);
    }
  }
  CHECK(make_policy("write_gate(gate=oracle)+snapkv", geometry_of(trace, {})).bound);
}

TEST_CASE("write_gate refuses what has no meaning", "[policy][write_gate]") {
  const Geometry g = geometry_of(random_trace(20, 16, 1), {});
  CHECK_THROWS_WITH(make_policy("write_gate(tau=0.1,rate=20%)", g), Contains("either tau or rate"));
  CHECK_THROWS_WITH(make_policy("write_gate(rate=20)", g), Contains("expected a share"));
  CHECK_THROWS_AS(make_policy("write_gate(rate=120%)", g), ConfigError);
  CHECK_THROWS_AS(make_policy("write_gate(gate=oracle,weights=x)", g), ConfigError);
  CHECK_THROWS_AS(make_policy("write_gate(gate=random,tau=0.5)", g), ConfigError);
  CHECK_THROWS_AS(make_policy("write_gate(gate=file)", g), ConfigError);
  CHECK_THROWS_AS(make_policy("write_gate+write_gate", g), ConfigError);
}
