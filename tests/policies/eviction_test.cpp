// SPDX-License-Identifier: Apache-2.0
// Policies that evict while tokens are generated, or chunk by chunk: one worked example each, small
// enough to check by hand.
#include <algorithm>
#include <cmath>
#include <numeric>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/random.h"
#include "sim/models/model_geometry.h"
#include "sim/policies/shared/groups.h"
#include "sim/predict/analytic.h"
#include "sim/predict/paper_formulas.h"
#include "tests/support/cases.h"
#include "tests/support/files.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::deaths;
using test::random_trace;
using test::Table;
using test::weights;
using test::weights_spec;

namespace {

using Rows = std::vector<int>;

}  // namespace

// ---- random -------------------------------------------------------------------------------------

TEST_CASE("random evicts the smallest ranks, so budgets nest", "[policy][random]") {
  const Trace trace = weights(std::vector<double>(40, 0.0), 30);
  for (int budget = 1; budget < 30; ++budget) {
    const auto small = deaths(trace, fmt::format("random(budget={},seed=7)", budget));
    const auto large = deaths(trace, fmt::format("random(budget={},seed=7)", budget + 1));
    for (std::size_t t = 0; t < small.size(); ++t) CHECK(small[t] <= large[t]);
  }
  CHECK(deaths(trace, "random(budget=5,seed=7)") != deaths(trace, "random(budget=5,seed=8)"));
}

// ---- h2o ----------------------------------------------------------------------------------------

TEST_CASE("h2o keeps the heaviest hitters by summed attention, and the newest", "[policy][h2o]") {
  // Equal weights: key j has received sum over rows i >= j of 1/(i+1): the older, the heavier.
  const Trace equal = weights({0, 0, 0, 0, 0, 0}, 4);
  CHECK(deaths(equal, "h2o(heavy=1,recent=1)") == std::vector<int>{6, 4, 4, 5, 6, 6});
  // Key 2 takes nearly everything once it is there: it beats the older keys 0 and 1.
  //   rows: 0: k0 1 | 1: 1/2 1/2 | 2, 3: k2 ~ 1   sums: k0 1.5, k1 .5, k2 ~ 2
  const Trace heavy = weights({0, 0, 9, 0, 0, 0}, 4);
  CHECK(deaths(heavy, "h2o(heavy=1,recent=1)") == std::vector<int>{4, 4, 6, 5, 6, 6});
  CHECK(deaths(heavy, "h2o(heavy=2,recent=1)") == std::vector<int>{6, 4, 6, 5, 6, 6});
}

TEST_CASE("h2o is idle while everything fits", "[policy][h2o]") {
  const Trace trace = weights({0, 1, 2, 3, 4, 5}, 4);
  CHECK(deaths(trace, "h2o(heavy=3,recent=3)") == std::vector<int>(6, 6));
}

TEST_CASE("h2o with variant=ratio takes both parts as shares of the prompt", "[policy][h2o]") {
  const Trace trace = weights({0, 1, 3, 0, 2, 0, 1, 0, 2, 0, 1, 0, 2}, 10);
  CHECK(deaths(trace, "h2o(variant=ratio,heavy_share=10,recent_share=20)") ==
        deaths(trace, "h2o(heavy=1,recent=2)"));
  // 3276 + 3276 of 32,768: 6,552 entries in 32 layers x 8 heads, 512 bytes each, 4 for the score.
  const Geometry g = test::llama_8b(32768, 1);
  const Policy policy = make_policy("h2o(variant=ratio)", g);
  const Sizing sizing = policy.rules[0].sizing({0, 32768, 32768, 32768, {}});
  CHECK(sizing.tokens * 256 * g.entry_bytes() == 858783744);
  CHECK(sizing.tokens * 256 * policy.charge.entry == 6709248);
  CHECK_THROWS_WITH(make_policy("h2o(variant=ratio,budget=10%)", g), Contains("heavy_share"));
  CHECK_THROWS_WITH(make_policy("h2o(heavy_share=10)", g), Contains("variant=ratio"));
  CHECK_THROWS_WITH(make_policy("h2o(variant=flexgen,heavy=1,recent=1)", g), Contains("budget"));
}

TEST_CASE("h2o with variant=flexgen holds one entry less and protects one more in decode",
          "[policy][h2o]") {
  // Equal weights: the older, the heavier. h = 2.
  //   prompt end: 2 heaviest of 0..3, and 4 | row 5: 4, 5 safe, 1 is lighter than 0
  //   row 6: 5, 6 safe, 4 is lighter than 0
  const Trace trace = weights(std::vector<double>(8, 0.0), 5);
  CHECK(deaths(trace, "h2o(variant=flexgen,budget=4)") == Rows{8, 6, 5, 5, 7, 8, 8, 8});
  CHECK(deaths(trace, "h2o(variant=flexgen,budget=5)") ==
        deaths(trace, "h2o(variant=flexgen,budget=4)"));
}

TEST_CASE("h2o with normalise=true divides by the rows that saw an entry", "[policy][h2o]") {
  //   sums: k0 1 + 1/2 + .188 + .158 = 1.85 over 4 rows, k2 .624 + .525 = 1.15 over 2
  const Trace trace = weights({0, 0, 1.2, 0, 0}, 4);
  CHECK(deaths(trace, "h2o(heavy=1,recent=1)") == Rows{5, 4, 4, 5, 5});
  CHECK(deaths(trace, "h2o(heavy=1,recent=1,normalise=true)") == Rows{4, 4, 5, 5, 5});
}

TEST_CASE("h2o with weight=value adds shares of attention times lengths of values",
          "[policy][h2o]") {
  // Equal weights, but value 2 is four times as long as the others.
  //   shares: row 0: 1 | 1: 1/2 1/2 | 2: 1/6 1/6 4/6 | 3: 1/7 1/7 4/7 1/7
  //   sums: k0 1.81, k1 .81, k2 1.24, k3 .14; over their rows: k0 .45, k1 .27, k2 .62
  // Row 4 reads 0, 2, 3, 4: k3 .29 is lighter than k2 1.81. Row 5: 4 is the lightest.
  const Trace trace = weights({0, 0, 0, 0, 0, 0}, 4, {}, {1, -1, 4, 1, 1, 1});
  CHECK(deaths(trace, "h2o(heavy=2,recent=1)") == Rows{6, 6, 4, 5, 6, 6});
  CHECK(deaths(trace, "h2o(heavy=2,recent=1,weight=value)") == Rows{6, 4, 6, 5, 6, 6});
  // Rows 4 and 5 read 2 and two more: k2 (1.24 + 4/6) / 3 = .63, k3 (.14 + 1/6) / 2 = .15.
  CHECK(deaths(trace, "h2o(heavy=1,recent=1,weight=value,normalise=true)") ==
        Rows{4, 4, 6, 5, 6, 6});
  // A sum and a length of 4 bytes each for the four entries that row 5 reads.
  const RunResult run = test::run_one(trace, "h2o(heavy=2,recent=1,weight=value)", {});
  CHECK(run.metrics.timeline.overhead_bytes[5] == 4 * 8);
}

TEST_CASE("h2o's grace is the newest part of its budget", "[policy][h2o]") {
  // Key 2 is the heaviest, 0 the next (2 and 1.5, see above). Of 3: two heavy ones and the newest;
  // none of them new; a grace of the whole budget is a window.
  const Trace trace = weights({0, 0, 9, 0, 0, 0}, 4);
  CHECK(deaths(trace, "h2o(budget=3,grace=1)") == Rows{6, 4, 6, 5, 6, 6});
  CHECK(deaths(trace, "h2o(budget=3,grace=1)") == deaths(trace, "h2o(heavy=2,recent=1)"));
  CHECK(deaths(trace, "h2o(budget=3,grace=0)") == Rows{6, 6, 6, 4, 5, 6});
  CHECK(deaths(trace, "h2o(budget=3,grace=3)") == Rows{4, 5, 6, 6, 6, 6});
  CHECK(deaths(trace, "h2o(budget=3,grace=9)") == Rows{4, 5, 6, 6, 6, 6});
  CHECK_THROWS_WITH(deaths(trace, "h2o(heavy=1,recent=1,grace=1)"), Contains("leave out heavy"));
  CHECK_THROWS_WITH(deaths(trace, "h2o(variant=flexgen,grace=1)"), Contains("real_drop"));
}

// ---- tova ---------------------------------------------------------------------------------------

TEST_CASE("tova drops what the last row attends to least, the newest included", "[policy][tova]") {
  //                    prompt end, keep 2: 3 and 2 | row 4: newest is lowest | row 5
  const Trace trace = weights({1, 0, 2, 3, -1, 2.5}, 4);
  CHECK(deaths(trace, "tova(budget=2)") == std::vector<int>{4, 4, 6, 6, 5, 6});
}

TEST_CASE("tova keeps one set for all heads of a layer", "[policy][tova]") {
  const test::TraceSpec spec = test::random_spec(
      {.layers = 2, .tokens = 30, .prompt_tokens = 20, .query_heads = 6, .kv_heads = 3});
  const Trace trace = test::make_trace(spec);
  for (int l = 0; l < 2; ++l) {
    CHECK(deaths(trace, "tova(budget=7)", {}, l, 0) == deaths(trace, "tova(budget=7)", {}, l, 1));
    CHECK(deaths(trace, "tova(budget=7)", {}, l, 0) == deaths(trace, "tova(budget=7)", {}, l, 2));
  }
}

// ---- scissorhands -------------------------------------------------------------------------------

TEST_CASE("scissorhands drops a batch when it is full, by low votes of recent rows",
          "[policy][scissorhands]") {
  // Shares below 1/t in rows 2, 3, 4: key 1 three times, key 2 three times, key 4 once; 0 and 3
  // never: the tie goes to 0. The newest is safe. B = 4, m = 2: 2 stay, and grow back to 4.
  // Row 7 makes five: keys 4, 5 (three low votes) and 6 (two) leave.
  const Trace trace = weights({2, 0, 0, 2.5, 0, 0, 0, 0, 0}, 5);
  const std::string policy = "scissorhands(budget=4,window=3,recent=1)";
  CHECK(deaths(trace, policy) == Rows{9, 5, 5, 5, 8, 8, 8, 9, 9});
  const RunResult run = test::run_one(trace, policy, {});
  CHECK(run.metrics.timeline.resident_entries ==
        std::vector<std::int64_t>{1, 2, 3, 4, 5, 3, 4, 5, 3});
  CHECK(run.metrics.peak_bytes.overhead == 5 * 2);
  // With m = 1 and row 4 alone: 1 and 2 leave, and 4, 5 when row 6 makes five.
  CHECK(deaths(trace, "scissorhands(budget=4,window=1,recent=1,drop=25)") ==
        Rows{9, 5, 5, 9, 7, 7, 9, 9, 9});
  CHECK_THROWS_WITH(deaths(trace, "pyramid+" + policy), Contains("budget shape"));
  CHECK_THROWS_AS(deaths(trace, "scissorhands(drop=101)"), ConfigError);
}

TEST_CASE("scissorhands' released code keeps what any recent row ranks in its top tenth",
          "[policy][scissorhands]") {
  // 124 columns: 12 entries may lie above the value at index 111. Of full rows only key 3 does, the
  // others being equal; rows of at most 12 entries let 0 to 11 pass; the newest ten stay. From row
  // 100 on fewer share the mass, and all that is read lies above the line. Layer 4 is left alone.
  std::vector<double> keys(124, 0.0);
  keys[3] = 5;
  test::TraceSpec spec = weights_spec(keys, 120);
  spec.layers.push_back(spec.layers[0]);
  spec.meta.layers = 2;
  spec.meta.layer_ids = {4, 5};
  spec.meta.model_layers = 40;
  const Trace trace = test::make_trace(spec);
  Rows expected(124, 124);
  std::fill(expected.begin() + 12, expected.begin() + 90, 100);
  CHECK(deaths(trace, "scissorhands(mode=eval_code)", {}, 1) == expected);
  CHECK(deaths(trace, "scissorhands(mode=eval_code)", {}, 0) == Rows(124, 124));
  CHECK_THROWS_WITH(deaths(trace, "scissorhands(mode=eval_code,window=5)"), Contains("window"));
}

// ---- keyformer ----------------------------------------------------------------------------------

TEST_CASE("keyformer sums a noisy softmax of every row", "[policy][keyformer]") {
  // At a high temperature noise and logits vanish: the older, the heavier.
  const Trace equal = weights({0, 1, 0, 1, 0, 0, 0}, 5);
  CHECK(deaths(equal, "keyformer(budget=3,recent=34,tau_start=100,tau_end=100)") ==
        Rows{7, 7, 5, 5, 6, 7, 7});
  // By definition, on random vectors.
  const test::TraceSpec spec =
      test::random_spec({.layers = 1, .tokens = 16, .prompt_tokens = 10, .seed = 3});
  const Trace trace = test::make_trace(spec);
  std::vector<std::vector<double>> f(2, std::vector<double>(16, 0.0));
  std::vector<int> held;
  Rows expected(16, 16);
  for (int row = 0; row < 15; ++row) {
    held.push_back(row);
    const double tau = row < 10 ? 1.0 : 1.0 + (row - 9) * 1.0 / 6;
    for (int q = 0; q < 2; ++q) {
      std::vector<double> term;
      for (const int t : held) {
        double z = 0;
        for (int d = 0; d < 4; ++d)
          z += spec.layers[0].q[index((row * 2 + q) * 4 + d)] * spec.layers[0].k[index(t * 4 + d)];
        std::uint64_t cell = kvspan::splitmix64(7);
        for (const int key : {0, q, row})
          cell = kvspan::splitmix64(cell ^ static_cast<std::uint64_t>(key));
        const double gumbel = -std::log(-std::log(kvspan::uniform(cell, {t})));
        term.push_back(std::exp((z / 2 + gumbel) / tau));
      }
      const double sum = std::accumulate(term.begin(), term.end(), 0.0);
      for (std::size_t i = 0; i < held.size(); ++i) f[index(q)][index(held[i])] += term[i] / sum;
    }
    while (row >= 9 && held.size() > 5) {  // two newest are safe
      const auto worst = std::min_element(held.begin(), held.end() - 2, [&](int a, int b) {
        return f[0][index(a)] + f[1][index(a)] < f[0][index(b)] + f[1][index(b)];
      });
      expected[index(*worst)] = row + 1;
      held.erase(worst);
    }
  }
  CHECK(deaths(trace, "keyformer(budget=5,recent=40,seed=7)") == expected);
  bool differs = false;
  for (int seed = 8; seed < 20; ++seed) {
    const std::string other = fmt::format("keyformer(budget=5,recent=40,seed={})", seed);
    differs = differs || deaths(trace, other) != expected;
  }
  CHECK(differs);
  CHECK(test::run_one(trace, "keyformer(budget=5)", {}).metrics.peak_bytes.overhead == 10 * 4);
  // Every fourth decode row: 5, then up to 9.
  CHECK(test::run_one(trace, "keyformer(budget=5,every=4)", {}).metrics.timeline.resident_entries ==
        std::vector<std::int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 6, 7, 8, 9, 6, 7});
  CHECK_NOTHROW(deaths(trace, "pyramid(window=1)+keyformer(budget=5)"));
}

// ---- locret -------------------------------------------------------------------------------------

TEST_CASE("locret lets all entries compete after every chunk, and spares the prompt's tail",
          "[policy][locret]") {
  // Chunks [0,4) [4,8), tail [8,10), 3 places, 1 stabilizer.
  //   at 4: 3 is safe, 0 (5) and 2 (2) stay, 1 goes.
  //   at 8, the last chunk: nobody is safe; 4 (9), 0 (5), 5 (3) stay.
  const Trace trace = weights(std::vector<double>(11, 0.0), 10);
  const Table file("scores", {1, 1, 11}, {5, 1, 2, 0, 9, 3, 0, .5, 0, 0, 0});
  EngineOptions options;
  options.chunk = 4;
  CHECK(deaths(trace,
               fmt::format("locret(budget=3,local=2,stabilizers=1,scorer=file,weights=\"{}\")",
                           file.name()),
               options) == std::vector<int>{11, 4, 8, 8, 11, 11, 8, 8, 11, 11, 11});
  // Without a tail the last chunk ends with the prompt: at 8 the stabilizer 7 pushes 5 out, and at
  // 10 it stays by its score.
  CHECK(deaths(trace,
               fmt::format("locret(budget=3,local=0,stabilizers=1,scorer=file,weights=\"{}\")",
                           file.name()),
               options) == std::vector<int>{11, 4, 8, 8, 11, 8, 8, 11, 10, 10, 11});
}

TEST_CASE("locret's share of a budget is rounded up to 64 entries of the tokens so far",
          "[policy][locret]") {
  Geometry g = geometry_of(load_model("Llama-3.1-8B"), 1100, 10, 250, 2);
  const auto tokens = [&](const std::string& spec, RowIndex end) {
    Pass pass;
    pass.begin = 0;
    pass.end = end;
    pass.evict_point = 1099;  // all but the prompt's last token are prefilled
    pass.prompt_end = 1100;
    return make_policy(spec, g).rules.at(0).sizing(pass).tokens;
  };
  CHECK(tokens("locret(budget=30%,stabilizers=10)", 250) == 128);  // 75 -> 128
  CHECK(tokens("locret(budget=30%,stabilizers=10)", 500) == 192);  // 150 -> 192
  CHECK(tokens("locret(budget=30%,stabilizers=10)", 999) == 320);  // 299 -> 320
  CHECK(tokens("locret(budget=30%,stabilizers=400)", 999) == 400);
  CHECK(tokens("locret(budget=30%,stabilizers=10)", 1050) == kAll);  // inside the tail
  CHECK(tokens("locret(budget=30%,stabilizers=10)", 1099) == 384);   // 329 -> 384
  CHECK(tokens("locret(budget=77,stabilizers=10)", 500) == 77);
  // Retaining heads [4096 + 2 * 1024 -> 1024 -> 8] in 32 layers, and a score an entry.
  const Policy policy = make_policy("locret", g);
  CHECK(policy.charge.once == std::int64_t{2} * 32 * 1024 * (6144 + 8));
  CHECK(policy.charge.entry == 2);
  CHECK_THROWS_AS(make_policy("locret(scorer=file)", g), ConfigError);
  CHECK_THROWS_WITH(make_policy("locret(budget=1B)", g),
                    Contains("locret: budget=1B is less than one entry a head"));
  CHECK_THROWS_AS(make_policy("chunked(locret)", g), ConfigError);
}

TEST_CASE("locret with a share lets the prompt's tail compete, too", "[policy][locret]") {
  // As arXiv 2506.17121 runs it: 1,101 tokens, 1,100 of them prefilled in [0,512) [512,1000) and
  // the tail [1000,1100); row 1100 goes through decode. Scores fall with the token.
  //   at 512: 256 stay: the newest 64, which are safe, and 0 .. 191
  //   at 1000: int(500) -> 512 stay, nobody is safe: 0 .. 191, 448 .. 511, 512 .. 767
  //   at 1100: int(550) -> 576 of 612 stay: the newest 36 of the tail leave
  const Trace trace = weights(std::vector<double>(1102, 0.0), 1101);
  std::vector<double> falling(1102);
  for (std::size_t t = 0; t < falling.size(); ++t) falling[t] = -static_cast<double>(t);
  const Table file("scores", {1, 1, 1102}, falling);
  EngineOptions options;
  options.chunk = 512;
  const RunResult run = test::run_one(
      trace,
      fmt::format("locret(budget=50%,local=100,stabilizers=64,scorer=file,weights=\"{}\")",
                  file.name()),
      options);
  Rows expected(1102, 1102);
  std::fill(expected.begin() + 192, expected.begin() + 448, 512);
  std::fill(expected.begin() + 768, expected.begin() + 1000, 1000);
  std::fill(expected.begin() + 1064, expected.begin() + 1100, 1100);
  const auto d = run.ledger.deaths(0, 0);
  CHECK(Rows(d.begin(), d.end()) == expected);
  CHECK(run.metrics.timeline.resident_entries[1099] == 612);
  CHECK(run.metrics.timeline.resident_entries[1100] == 577);
  // A context that ends before the question is prefilled whole.
  options.evict_point = 1000;
  CHECK(test::run_one(
            trace,
            fmt::format("locret(budget=50%,local=100,stabilizers=64,scorer=file,weights=\"{}\")",
                        file.name()),
            options)
            .metrics.timeline.resident_entries[1000] == 513);
}

TEST_CASE("the metric's Locret head is the one of arXiv 2506.17121", "[analytic][locret]") {
  const HeadArea head = locret_head(131072, 128, 32768, 0.7, 100, 2500);
  const FootprintAndPeak got = mixed(head, head, 0, 131072, 128);
  CHECK(fmt::format("{:.10f} {:.10f}", got.footprint, got.peak) == "0.5316757513 0.5309298780");
  // A prompt within the tail is one chunk, kept whole.
  CHECK(locret_head(8, 2, 4, 0.5, 10, 0).peak_points == std::vector<std::int64_t>{8, 6});
}

// ---- together -----------------------------------------------------------------------------------

TEST_CASE("ties go to the lower token index", "[policy][ties]") {
  const Trace trace = weights(std::vector<double>(8, 0.0), 6);
  CHECK(deaths(trace, "tova(budget=3)") == std::vector<int>{8, 8, 8, 6, 6, 6, 7, 8});
  CHECK(deaths(trace, "snapkv(budget=3,window=1,kernel=1)") ==
        std::vector<int>{8, 8, 6, 6, 6, 8, 8, 8});
}

TEST_CASE("variants of the decode-time classics equal their closed forms", "[policy][analytic]") {
  test::Random random(5);
  for (int round = 0; round < 20; ++round) {
    const int prompt = test::pick(random, 1, 50);
    const int generated = test::pick(random, 0, 25);
    const Trace trace = test::random_trace(prompt + generated, prompt, random());
    EngineOptions options;
    options.fidelity = false;
    if (test::pick(random, 0, 2) == 0) options.evict_point = test::pick(random, 1, prompt);
    for (const char* text :
         {"scissorhands(budget=9,window=3,recent=2,drop=30)", "scissorhands(budget=2,drop=100)",
          "keyformer(budget=7,every=3)", "keyformer(variant=code,budget=7)",
          "keyformer(variant=code,budget=9,every=4,recent=50)",
          "r_kv(budget=6,buffer=4,window=2,kernel=3)", "r_kv(budget=20%,buffer=7)",
          "sagekv(budget=9)", "sagekv(budget=12,k=0,recent=0)", "sagekv(budget=9,agg=sum)",
          "sagekv(budget=8,sinks=50,recent=0)", "h2o(variant=flexgen,budget=7)",
          "h2o(variant=ratio)", "h2o(budget=5,normalise=true)", "lambda(budget=6,sinks=1)"}) {
      INFO(text << " n=" << prompt << " m=" << generated << " n'=" << options.evict_point);
      CHECK(test::off_closed_form(trace, text, options) == "");
    }
  }
}

TEST_CASE("scores that need no vectors run on probabilities alone", "[policy][score_trace]") {
  // The same deaths from full rows of probabilities as from q and k.
  const test::TraceSpec spec = test::random_spec(
      {.layers = 1, .tokens = 30, .prompt_tokens = 22, .query_heads = 4, .kv_heads = 2, .seed = 4});
  const Trace trace = test::make_trace(spec);
  test::TraceSpec dense;
  dense.meta = spec.meta;
  test::LayerSpec layer;
  for (int row = 0; row < 30; ++row) {
    layer.rows.push_back(row);
    for (int q = 0; q < 4; ++q) {
      std::vector<double> p(30, 0.0);
      double sum = 0;
      for (int t = 0; t <= row; ++t) {
        double z = 0;
        for (int d = 0; d < 4; ++d)
          z += spec.layers[0].q[index((row * 4 + q) * 4 + d)] *
               spec.layers[0].k[index((t * 2 + q / 2) * 4 + d)];
        sum += p[index(t)] = std::exp(z / 2);
      }
      for (double& x : p) layer.dense.push_back(x / sum);
      layer.lse.push_back(std::log(sum));
    }
  }
  dense.layers.push_back(layer);
  const Trace scores = test::make_trace(dense);
  for (const char* policy :
       {"scissorhands(budget=8,window=5,recent=2)", "sagekv(budget=9)",
        "sagekv(budget=9,dup=union)", "fastgen(recovery=0.6,recent=20,frequent=20)",
        "h2o(variant=flexgen,budget=8)", "h2o(budget=6,normalise=true)"}) {
    INFO(policy);
    for (int h = 0; h < 2; ++h)
      CHECK(deaths(scores, policy, {}, 0, h) == deaths(trace, policy, {}, 0, h));
  }
  for (const char* policy : {"keyformer(budget=8)", "r_kv(budget=8)", "sagekv(budget=9,agg=sum)"})
    CHECK_THROWS_AS(deaths(scores, policy), TraceError);
}
