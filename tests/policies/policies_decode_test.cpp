// SPDX-License-Identifier: Apache-2.0
// Classics that evict in decode: one worked example each, small enough to check by hand.
#include <algorithm>
#include <cmath>
#include <numeric>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/base/random.h"
#include "sim/policies/shared/helpers.h"
#include "sim/predict/analytic.h"
#include "tests/support/cases.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using policies::index;
using test::deaths;
using test::weights;
using test::weights_spec;

namespace {

using Rows = std::vector<int>;

// One layer; keys are unit vectors of their own, so that q[row][head] holds the logits of a row.
Trace logits_trace(const std::vector<std::vector<std::vector<double>>>& q, int prompt) {
  test::TraceSpec spec;
  const auto tokens = static_cast<std::int64_t>(q.size());
  spec.meta.query_heads = static_cast<int>(q[0].size());
  spec.meta.kv_heads = 1;
  spec.meta.head_dim = static_cast<int>(tokens);
  spec.meta.tokens = tokens;
  spec.meta.prompt_tokens = prompt;
  spec.meta.score_scale = 1;
  spec.layers.push_back({});
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (const auto& head : q[index(t)])
      spec.layers[0].q.insert(spec.layers[0].q.end(), head.begin(), head.end());
    for (std::int64_t d = 0; d < tokens; ++d) spec.layers[0].k.push_back(d == t ? 1 : 0);
  }
  return test::make_trace(spec);
}

}  // namespace

TEST_CASE("streaming_llm measures outputs under places in the cache when asked to",
          "[policy][streaming_llm]") {
  // head_dim 2: one rotary pair of frequency 1. After the prompt 0, 2, 3 stay, after row 4 0, 3, 4.
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = 1;
  spec.meta.head_dim = 2;
  spec.meta.tokens = 6;
  spec.meta.prompt_tokens = 4;
  spec.meta.score_scale = 1;
  Rope rope;
  rope.dim = 2;
  spec.meta.rope.emplace(rope);
  spec.layers.push_back({});
  spec.layers[0].q = {1, 0, 0, 1, 1, 1, -1, 1, 2, -1, 1, 2};
  spec.layers[0].k = {1, 1, 0, 2, -1, 0, 1, -1, 2, 0, 0, 1};
  spec.layers[0].v = {1, 0, 0, 1, -1, 2, 3, 1, 0, -2, 1, 1};
  const Trace trace = test::make_trace(spec);
  const test::LayerSpec& layer = spec.layers[0];

  const auto turned = [](const std::vector<double>& x, int token, double angle) {
    const double a = x[index(2 * token)];
    const double b = x[index(2 * token + 1)];
    return std::pair{a * std::cos(angle) - b * std::sin(angle),
                     a * std::sin(angle) + b * std::cos(angle)};
  };
  // Output of a row over `tokens` (the row's own is the last), by place or by token.
  const auto output = [&](const std::vector<int>& tokens, bool by_place) {
    const int row = tokens.back();
    std::vector<double> p;
    const auto moved = [&](int token, std::size_t place) {
      return by_place ? static_cast<double>(place) - token : 0.0;
    };
    const auto q = turned(layer.q, row, moved(row, tokens.size() - 1));
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const auto k = turned(layer.k, tokens[i], moved(tokens[i], i));
      p.push_back(std::exp(q.first * k.first + q.second * k.second));
    }
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    std::pair<double, double> out{0, 0};
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      out.first += p[i] / sum * layer.v[index(2 * tokens[i])];
      out.second += p[i] / sum * layer.v[index(2 * tokens[i] + 1)];
    }
    return out;
  };
  for (const bool by_place : {false, true}) {
    double expected = 0;
    for (const std::vector<int>& held : {std::vector{0, 2, 3, 4}, std::vector{0, 3, 4, 5}}) {
      std::vector<int> all(index(held.back() + 1));
      std::iota(all.begin(), all.end(), 0);
      const auto full = output(all, false);
      const auto kept = output(held, by_place);
      expected += std::hypot(kept.first - full.first, kept.second - full.second) /
                  std::hypot(full.first, full.second) / 2;
    }
    const RunResult run = test::run_one(trace,
                                        fmt::format("streaming_llm(sinks=1,window=2,positions={})",
                                                    by_place ? "cache" : "original"),
                                        {});
    CHECK(run.fidelity->decode->error_mean == Approx(expected).epsilon(1e-5));
    CHECK(deaths(trace, run.spec) == Rows{6, 4, 5, 6, 6, 6});
  }
  CHECK_THROWS_WITH(deaths(weights({0, 0, 0}, 2), "streaming_llm(window=1,positions=cache)"),
                    Contains("rope_"));
}

TEST_CASE("lambda keeps sinks and the newest tokens within its budget", "[policy][lambda]") {
  const Trace trace = weights(std::vector<double>(8, 0.0), 5);
  CHECK(deaths(trace, "lambda(budget=3,sinks=1)") == Rows{8, 5, 5, 6, 7, 8, 8, 8});
  CHECK(deaths(trace, "lambda(budget=3)") == Rows{8, 8, 8, 5, 5, 6, 7, 8});  // sinks only
  for (int budget = 1; budget < 9; ++budget) {
    CHECK(deaths(trace, fmt::format("lambda(budget={})", budget)) ==
          deaths(trace, fmt::format("streaming_llm(budget={})", budget)));
  }
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
  // Only key 3 is ever above the 90th percentile; the newest ten stay; layer 4 is left alone.
  std::vector<double> keys(124, 0.0);
  keys[3] = 5;
  test::TraceSpec spec = weights_spec(keys, 120);
  spec.layers.push_back(spec.layers[0]);
  spec.meta.layers = 2;
  spec.meta.layer_ids = {4, 5};
  spec.meta.model_layers = 40;
  const Trace trace = test::make_trace(spec);
  Rows expected(124, 120);
  expected[3] = 124;
  for (int t = 110; t < 124; ++t) expected[index(t)] = std::min(124, t + 11);
  expected[110] = 121;
  CHECK(deaths(trace, "scissorhands(mode=eval_code)", {}, 1) == expected);
  CHECK(deaths(trace, "scissorhands(mode=eval_code)", {}, 0) == Rows(124, 124));
  CHECK_THROWS_WITH(deaths(trace, "scissorhands(mode=eval_code,window=5)"), Contains("window"));
}

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

TEST_CASE("r_kv evicts near-duplicates, the oldest first", "[policy][r_kv]") {
  // x = (1, 0), y = (0, 1), Y = (0, -1). Window 1, lambda 0: redundancy alone.
  //   tokens            0 1 2 3 4 | 5 6 7 8 9
  //   keys              x x x y Y | x x x x x
  // Length 5: rows 0, 1 spare column 2, row 2 spares column 1: columns sum to 2, 1, 0, -1 and 0 and 1
  //   leave; the newest is the window.
  // Length 6 (a multiple of 3), entries 2 3 4 5: 2 and 5 spare each other; columns 0, -1, -1: 2 leaves.
  // Length 9, entries 3 4 5 6 7 8: rows 5, 6, 7 spare 8, row 8 spares 7; row 4 has no duplicate, so
  //   that column 0 (entry 3) loses its -1: columns 0, -1, 3, 3, 2: 5, 6, 7 leave.
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = 1;
  spec.meta.head_dim = 2;
  spec.meta.tokens = 10;
  spec.meta.prompt_tokens = 5;
  spec.layers.push_back({});
  spec.layers[0].q.assign(20, 0.0);
  spec.layers[0].k = {1, 0, 2, 0, 1, 0, 0, 1, 0, -3, 1, 0, 1, 0, 3, 0, 1, 0, 1, 0};
  const Trace trace = test::make_trace(spec);
  CHECK(deaths(trace, "r_kv(budget=3,buffer=3,window=1,lambda=0)") ==
        Rows{5, 5, 6, 10, 10, 9, 9, 9, 10, 10});
  // Importance alone is SnapKV's, but for the window's share of the softmax.
  const Trace heavy = weights({0, 3, 1, 2, 0, 0, 0}, 6);
  CHECK(deaths(heavy, "r_kv(budget=3,window=1,kernel=1,lambda=1)") ==
        deaths(heavy, "snapkv(budget=3,window=1,kernel=1)"));
  CHECK_THROWS_WITH(deaths(heavy, "r_kv(kernel=4)"), Contains("nearest: 5"));
}

TEST_CASE("r_kv equals its definition with the whole matrix of cosines", "[policy][r_kv]") {
  const int n = 40;
  const test::TraceSpec spec = test::random_spec({.layers = 1,
                                                  .tokens = n + 1,
                                                  .prompt_tokens = n,
                                                  .query_heads = 4,
                                                  .kv_heads = 2,
                                                  .seed = 8});
  const Trace trace = test::make_trace(spec);
  for (int h = 0; h < 2; ++h) {
    const auto key = [&](int t, int d) { return spec.layers[0].k[index((t * 2 + h) * 4 + d)]; };
    std::vector<std::vector<double>> c(n, std::vector<double>(n, 0.0));
    for (int i = 0; i < n; ++i) {
      int last = 0;
      for (int j = 0; j < n; ++j) {
        double dot = 0, a = 0, b = 0;
        for (int d = 0; d < 4; ++d) {
          dot += key(i, d) * key(j, d);
          a += key(i, d) * key(i, d);
          b += key(j, d) * key(j, d);
        }
        c[index(i)][index(j)] = i == j ? 0 : dot / std::sqrt(a * b);
        if (c[index(i)][index(j)] > 0.5) last = j;
      }
      c[index(i)][index(last)] = 0;
    }
    std::vector<double> r(n, 0.0);
    double sum = 0;
    for (std::size_t j = 0; j < n; ++j) {
      for (std::size_t i = 0; i < n; ++i) r[j] += c[i][j] / n;
      sum += r[j] = std::exp(r[j]);
    }
    const int window = 3;
    std::vector<double> importance(n - window, 0.0);
    for (int row = n - window; row < n; ++row) {
      std::vector<double> p;
      for (int t = 0; t < n - window; ++t) {
        double most = -1e9;
        for (int q = 2 * h; q < 2 * h + 2; ++q) {
          double z = 0;
          for (int d = 0; d < 4; ++d)
            z += spec.layers[0].q[index((row * 4 + q) * 4 + d)] * key(t, d);
          most = std::max(most, z / 2);
        }
        p.push_back(std::exp(most));
      }
      const double all = std::accumulate(p.begin(), p.end(), 0.0);
      for (std::size_t t = 0; t < p.size(); ++t) importance[t] += p[t] / all / window;
    }
    policies::pool(policies::Pool::max, 3, importance);
    std::vector<std::pair<double, int>> order;
    for (int t = 0; t < n - window; ++t)
      order.emplace_back(-(0.6 * importance[index(t)] - 0.4 * r[index(t)] / sum), t);
    std::sort(order.begin(), order.end());
    Rows expected(n + 1, n + 1);
    for (std::size_t i = 12 - window; i < order.size(); ++i) expected[index(order[i].second)] = n;
    CHECK(deaths(trace, "r_kv(budget=12,window=3,kernel=3,lambda=0.6)", {}, 0, h) == expected);
  }
}

TEST_CASE("r_kv saves 1 - B / T, and pays for a ring of queries and a similarity matrix",
          "[policy][r_kv]") {
  // The authors' table: a budget of 1024 at 16 Ki generated tokens saves 93.75 %.
  Geometry g = test::llama_8b(128, 16384 - 128 + 1);
  const Policy policy = make_policy("r_kv(budget=1024)", g);
  const Prediction p = predict(policy, g, {});
  const std::int64_t held = p.after[0] / 8 - 1;  // without the last row, after which nothing leaves
  CHECK(1.0 - static_cast<double>(held) / 16384 == 0.9375);
  CHECK(policy.charge.once == std::int64_t{32} * 8 * 32 * 128 * 2);
  CHECK(policy.charge.at(16383) - policy.charge.once ==
        std::int64_t{8} * (1024 + 128) * (1024 + 128) * 4);
  CHECK(policy.charge.at(16382) == policy.charge.once);
  CHECK(policy.charge.at(1151) - policy.charge.once == std::int64_t{8} * 1152 * 1152 * 4);
  CHECK(policy.charge.at(1023) == policy.charge.once);  // exactly the budget: nobody leaves
}

TEST_CASE("sagekv freezes a selection after the prompt and slides its recent window",
          "[policy][sagekv]") {
  // B = 8, two query heads: sinks 0 1, k = 2 of the middle 2..9 per head, recent 10 11.
  // Every decode row enters, and the oldest recent one leaves: 10 after row 12, 11 after row 13.
  const auto trace_of = [](double second_head) {
    test::TraceSpec spec = weights_spec({0, 0, 5, 4, -5, -4, 0.1, 3, -3, 0, 0, 0, 0, 0, 0}, 12);
    spec.meta.query_heads = 2;
    spec.layers[0].q.clear();
    for (int t = 0; t < 15; ++t) {
      spec.layers[0].q.push_back(1);
      spec.layers[0].q.push_back(second_head);
    }
    return test::make_trace(spec);
  };
  // Opposite heads choose 2 3 and 4 5. Equal ones choose 2 3 both: taking turns, 7 and 6 follow.
  CHECK(deaths(trace_of(-1), "sagekv(budget=8)") ==
        Rows{15, 15, 15, 15, 15, 15, 12, 12, 12, 12, 13, 14, 15, 15, 15});
  CHECK(deaths(trace_of(-1), "sagekv(budget=8,dup=union)") ==
        deaths(trace_of(-1), "sagekv(budget=8)"));
  CHECK(deaths(trace_of(1), "sagekv(budget=8)") ==
        Rows{15, 15, 15, 15, 12, 12, 15, 15, 12, 12, 13, 14, 15, 15, 15});
  CHECK(deaths(trace_of(1), "sagekv(budget=8,dup=union)") ==
        Rows{15, 15, 15, 15, 12, 12, 12, 12, 12, 12, 13, 14, 15, 15, 15});
  CHECK(deaths(trace_of(0.5), "sagekv(budget=8,agg=sum)") ==
        deaths(trace_of(1), "sagekv(budget=8)"));
}

TEST_CASE("sagekv leaves a prompt within its budget alone, and slides behind the sinks",
          "[policy][sagekv]") {
  const Trace trace = weights(std::vector<double>(8, 0.0), 3);
  CHECK(deaths(trace, "sagekv(budget=4)") == Rows{8, 5, 6, 7, 8, 8, 8, 8});
}

TEST_CASE("sagekv divides its budget as the paper does", "[policy][sagekv]") {
  const auto sizes = [](int query_heads, int kv_heads, const std::string& policy) {
    Geometry g = test::llama_8b(32768, 8);
    g.query_heads = query_heads;
    g.kv_heads = kv_heads;
    const Policy p = make_policy(policy, g);
    const Protect protect = p.rules[0].protect({0, 32768, 32768, 32768, {}}, 8192);
    CHECK(p.rules[1].first == 32768 - protect.recent);
    return std::vector<std::int64_t>{protect.sinks, 8192 - protect.sinks - protect.recent,
                                     protect.recent};
  };
  using Sizes = std::vector<std::int64_t>;
  CHECK(sizes(32, 8, "sagekv(budget=8192)") == Sizes{2048, 4 * 1024, 2048});
  CHECK(sizes(28, 4, "sagekv(budget=8192,k=512)") == Sizes{2048, 7 * 512, 2560});
  CHECK(sizes(28, 4, "sagekv(budget=8192)") == Sizes{2048, 7 * 585, 2049});
}

TEST_CASE("sagekv refuses what cannot be divided", "[policy][sagekv]") {
  const Geometry g = test::llama_8b(100, 8);
  CHECK_THROWS_WITH(make_policy("sagekv(budget=40,k=8)", g), Contains("at most 7"));
  CHECK_THROWS_WITH(make_policy("sagekv(sinks=60,recent=50)", g), Contains("nearest: recent=40"));
  CHECK_THROWS_WITH(make_policy("sagekv(agg=sum,dup=union)", g), Contains("dup=fill"));
  CHECK_THROWS_WITH(make_policy("pyramid+sagekv", g), Contains("budget shape"));
  CHECK_THROWS_WITH(make_policy("sagekv+h2o", g), Contains("scorer"));
}

TEST_CASE("sinks of the first chunk take no place in later ones", "[policy][chunked]") {
  // Bug: every chunk reserved places for sinks, wherever they were, and kept so many too few.
  const Trace trace = weights(std::vector<double>(18, 0.0), 16);
  EngineOptions options;
  options.chunk = 8;  // 4 of each: 1 sink (of the first), 2 or 3 selected, 1 newest
  const RunResult run = test::run_one(trace, "chunked(sagekv(budget=50%))", options);
  CHECK(run.metrics.timeline.resident_entries[8] == 4 + 1);
  CHECK(run.metrics.timeline.resident_entries[16] == 4 + 4 + 1);
}

TEST_CASE("fastgen takes the cheapest set that recovers the prompt's attention",
          "[policy][fastgen]") {
  // Everything goes to the first token: special alone. Newborns leave after their own row.
  CHECK(deaths(weights({20, 0, 0, 0, 0, 0, 0}, 5), "fastgen") == Rows{7, 5, 5, 5, 5, 6, 7});
  // Keys 2 and 3 take all from row 2 on: rows recover 1, 1/2, 1, ..., 1 with them: .95 of 10 rows.
  // ceil(.2 * 10) = 2 frequent ones. At length 11 there are 3: the newborn fills the third place;
  // at 12 still 3, and token 10 has summed over two rows, 11 over one.
  const Trace frequent = weights({0, 0, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 10);
  CHECK(deaths(frequent, "fastgen(recovery=0.94,frequent=20)") ==
        Rows{13, 10, 13, 13, 10, 10, 10, 10, 10, 10, 13, 12, 13});
  // .96 is beyond them; the local band of all ten makes it up, and keeps everything.
  CHECK(deaths(frequent, "fastgen(recovery=0.96,frequent=20,recent=100)") == Rows(13, 13));
  // Uniform attention: nothing short of everything recovers .95.
  CHECK(deaths(weights(std::vector<double>(12, 0.0), 10), "fastgen") == Rows(12, 12));
}

TEST_CASE("fastgen's local set is a band that moves with the row", "[policy][fastgen]") {
  // Every row reads itself and the one before: a band of two recovers all of it.
  std::vector<std::vector<std::vector<double>>> q(13, {std::vector<double>(13, 0.0)});
  for (std::size_t i = 0; i < q.size(); ++i) {
    q[i][0][i] = 30;
    if (i > 0) q[i][0][i - 1] = 30;
  }
  // Length 10: the newest 2, and the first token; 11 and 12: ceil(.2 t) = 3.
  CHECK(deaths(logits_trace(q, 10), "fastgen(recent=20,frequent=0)") ==
        Rows{13, 10, 10, 10, 10, 10, 10, 10, 12, 13, 13, 13, 13});
  // A second head of the group that reads everything needs everything.
  for (auto& row : q) row.emplace_back(13, 0.0);
  CHECK(deaths(logits_trace(q, 10), "fastgen(recent=20,frequent=0)") == Rows(13, 13));
}

TEST_CASE("fastgen knows special tokens by their ids and punctuation by its text",
          "[policy][fastgen]") {
  // Key 4 takes rows 4 to 9: .6 of 10 rows. Key 0 has 1 + 1/2 + 1/3 + 1/4 before: .808 together.
  test::TraceSpec spec = weights_spec({0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0}, 10);
  spec.meta.special_ids = {7};
  spec.token_ids = {1, 1, 1, 1, 7, 1, 1, 1, 1, 1, 1};
  spec.token_text = {" ,\n", "a", "a.", "a", "<s>", "a", "a", "a", "a", "a", "a"};
  const Trace trace = test::make_trace(spec);
  const auto kept = [&](const std::string& policy) {
    const Rows d = deaths(trace, policy);
    Rows out;
    for (int t = 0; t < 10; ++t) {
      if (d[index(t)] == 11) out.push_back(t);
    }
    return out;
  };
  CHECK(kept("fastgen(recovery=0.55)") == Rows{4});
  CHECK(kept("fastgen(recovery=0.8)") == Rows{0, 4});
  CHECK(kept("fastgen(recovery=0.8,frequent=10,recent=10,punctuation=false)") == Rows{0, 4});
  // Key 1 adds 1/2 + 1/3 + 1/4: .916. The band of one adds 1/3 of row 2 and 1/4 of row 3: .975.
  CHECK(kept("fastgen(recovery=0.91,frequent=10,recent=10)") == Rows{0, 1, 4});
  CHECK(kept("fastgen(recovery=0.97,frequent=10,recent=10)") == Rows{0, 1, 4, 9});
  spec.token_text.clear();
  spec.token_ids.clear();
  const RunResult run = test::run_one(test::make_trace(spec), "fastgen", {});
  REQUIRE(run.notes.size() >= 2);
  CHECK_THAT(run.notes[0], Contains("special"));
  CHECK_THAT(run.notes[1], Contains("punctuation"));
  CHECK(run.metrics.peak_bytes.overhead == 10 * 2 + 1);
  CHECK_THROWS_WITH(deaths(trace, "chunked(fastgen)"), Contains("no budget"));
  CHECK_THROWS_WITH(deaths(trace, "pyramid+fastgen"), Contains("budget shape"));
  CHECK_NOTHROW(make_policy("fastgen", test::llama_8b(100, 10)));
}

TEST_CASE("variants of the decode-time classics equal their closed forms", "[policy][analytic]") {
  test::Random random(5);
  for (int round = 0; round < 20; ++round) {
    const int prompt = test::pick(random, 1, 50);
    const int generated = test::pick(random, 0, 25);
    const Trace trace = test::random_trace(prompt + generated, prompt, random());
    EngineOptions options;
    options.fidelity = false;
    if (test::pick(random, 0, 2) == 0) options.evict_at = test::pick(random, 1, prompt);
    for (const char* text :
         {"scissorhands(budget=9,window=3,recent=2,drop=30)", "scissorhands(budget=2,drop=100)",
          "keyformer(budget=7,every=3)", "r_kv(budget=6,buffer=4,window=2,kernel=3)",
          "r_kv(budget=20%,buffer=7)", "sagekv(budget=9)", "sagekv(budget=12,k=0,recent=0)",
          "sagekv(budget=9,agg=sum)", "sagekv(budget=8,sinks=50,recent=0)",
          "h2o(variant=flexgen,budget=7)", "h2o(variant=ratio)", "h2o(budget=5,normalise=true)",
          "lambda(budget=6,sinks=1)"}) {
      INFO(text << " n=" << prompt << " m=" << generated << " n'=" << options.evict_at);
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
