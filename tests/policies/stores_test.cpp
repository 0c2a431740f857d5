// SPDX-License-Identifier: Apache-2.0
// Policies about how entries are held: quantised, pruned by channel, demoted, merged into a state.
#include <algorithm>
#include <cmath>
#include <numeric>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/models/model_geometry.h"
#include "sim/policies/shared/quantise.h"
#include "sim/predict/analytic.h"
#include "tests/support/cases.h"
#include "tests/support/tiny_view.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::deaths;
using test::logits;
using test::TinyView;
using test::weights;
using Values = std::vector<float>;

namespace {

Geometry tiny_geometry(int dim, std::int64_t prompt, std::int64_t generated) {
  return geometry_of(ModelGeometry{"tiny", 1, 1, 1, dim, dim, {0}, {}}, prompt, generated, 0, 2);
}

// What the store of `spec` decides at the end of a pass over all of the view's tokens.
Decision aged(const std::string& spec, TinyView& view) {
  const auto tokens = view.pass().end;
  const Policy policy = make_policy(spec, tiny_geometry(view.shape().k_dim, tokens, 1));
  Decision out;
  policy.store(view.shape())->age(view, out);
  return out;
}

// The vectors of the last rewrite of each token; empty: never rewritten.
Values held_key(const Decision& decision, TokenIndex token) {
  Values out;
  for (const Rewrite& r : decision.rewrites) {
    if (r.token == token && !r.k.empty()) out = r.k;
  }
  return out;
}

Values held_value(const Decision& decision, TokenIndex token) {
  Values out;
  for (const Rewrite& r : decision.rewrites) {
    if (r.token == token && !r.v.empty()) out = r.v;
  }
  return out;
}

std::vector<std::vector<int>> changes(const RunResult& run) {  // row, token, representation
  std::vector<std::vector<int>> out;
  for (const Change& c : run.ledger.changes[0])
    out.push_back({static_cast<int>(c.row), c.token, c.representation});
  return out;
}

Trace store_trace(int tokens, int prompt, std::uint64_t seed, int dim = 4, int kv_heads = 1,
                  int query_heads = 1, int layers = 1) {
  return test::make_trace(test::random_spec({.layers = layers,
                                             .tokens = tokens,
                                             .prompt_tokens = prompt,
                                             .query_heads = query_heads,
                                             .kv_heads = kv_heads,
                                             .head_dim = dim,
                                             .seed = seed}));
}

double decode_error(const Trace& trace, const std::string& spec) {
  return test::run_one(trace, spec, {}).fidelity->decode->error_mean;
}

// Llama-3.1-8B, 16-bit: KV bytes after the decisions of row `tokens`, before anything else is born.
std::int64_t llama_bytes(const std::string& spec, std::int64_t prompt, std::int64_t generated) {
  const ModelGeometry llama = load_model("llama-3.1-8b");
  // One row more, so that the decision at the end of the last one is taken; it adds a newborn.
  const Geometry g = geometry_of(llama, prompt, generated + 1, 0, 2);
  const Prediction p = predict(make_policy(spec, g), g, {});
  CHECK(p.basis == Basis::closed_form);
  return std::accumulate(p.after_bytes.begin(), p.after_bytes.end(), std::int64_t{0}) - 131072;
}

Charge llama_charge(const std::string& spec, std::int64_t prompt, std::int64_t generated) {
  const Geometry g = geometry_of(load_model("llama-3.1-8b"), prompt, generated, 0, 2);
  return make_policy(spec, g).charge;
}

// Replay and closed form agree on random shapes. Returns how many were compared.
void check_closed_form(const std::vector<std::string>& specs, int dim) {
  test::Random random(7);
  for (int round = 0; round < 12; ++round) {
    const int prompt = test::pick(random, 1, 50);
    const int generated = test::pick(random, 0, 15);
    const Trace trace = store_trace(prompt + generated, prompt, random(), dim, 2, 4, 2);
    EngineOptions options;
    options.chunk = test::pick(random, 0, 1) == 0 ? 0 : test::pick(random, 1, 20);
    options.fidelity = false;
    for (const std::string& spec : specs) {
      for (const bool layerwise : {false, true}) {
        INFO(spec << " n=" << prompt << " m=" << generated << " C=" << options.chunk);
        Accounting accounting;
        accounting.layerwise = layerwise;
        CHECK(test::off_closed_form(trace, spec, options, accounting) == "");
      }
    }
  }
}

// Predictions that are upper bounds.
void check_bound(const std::string& spec, const Trace& trace) {
  INFO(spec);
  const Geometry g = geometry_of(trace, {});
  const Policy policy = make_policy(spec, g);
  CHECK_FALSE(policy.closed_form);
  const Prediction most = predict(policy, g, {});
  const RunResult run = test::run_one(trace, spec, {});
  CHECK(run.metrics.peak_bytes.total <= most.peak_bytes.total);
  CHECK(run.metrics.byte_rows <= most.byte_rows.value());
}

}  // namespace

// ---- kivi ---------------------------------------------------------------------------------------

TEST_CASE("kivi flushes keys by the residual, and lets values go one by one", "[policy][kivi]") {
  // n = 6, R = 4: 4 keys and 2 values after the prompt; then a value a row; at row 8 four more
  // keys.
  const RunResult run =
      test::run_one(store_trace(10, 6, 1), "kivi(group=2,residual=4)", EngineOptions{});
  CHECK(changes(run) == std::vector<std::vector<int>>{{6, 0, 3},
                                                      {6, 1, 3},
                                                      {6, 2, 1},
                                                      {6, 3, 1},
                                                      {7, 2, 3},
                                                      {8, 3, 3},
                                                      {8, 4, 1},
                                                      {8, 5, 1},
                                                      {8, 6, 1},
                                                      {8, 7, 1},
                                                      {9, 4, 3}});
  CHECK(run.metrics.footprint == 1.0);
}

TEST_CASE("kivi rounds keys along tokens and values along channels", "[policy][kivi]") {
  // Channel 0 of the keys is 0, 1.4, 3, 6: step 2 (see above); the other channel is constant.
  TinyView view({{0, 9}, {1.4F, 9}, {3, 9}, {6, 9}, {7, 9}},
                {{0, 3}, {1, 1}, {2, 2}, {3, 3}, {4, 4}});
  const Decision d = aged("kivi(bits=2,group=4,residual=4)", view);
  CHECK(held_key(d, 0) == Values{0, 9});
  CHECK(held_key(d, 1) == Values{2, 9});
  CHECK(held_key(d, 2) == Values{4, 9});
  CHECK(held_key(d, 3) == Values{6, 9});
  CHECK(held_key(d, 4).empty());
  CHECK(held_value(d, 0) == Values{0, 3});
  CHECK(held_value(d, 1).empty());
}

TEST_CASE("kivi's bytes are those of the published layout", "[policy][kivi]") {
  // Llama-3.1-8B; 198.5, 206.516, 210.5 MiB; 4 bits 325.5, 345.5; groups of 64 176.75.
  CHECK(llama_bytes("kivi", 8192, 0) == 208142336);
  CHECK(llama_bytes("kivi", 8192, 108) == 216547328);
  CHECK(llama_bytes("kivi", 8192, 512) == 220725248);
  CHECK(llama_bytes("kivi(bits=4)", 8192, 0) == 341311488);
  CHECK(llama_bytes("kivi(bits=4)", 8192, 512) == 362283008);
  CHECK(llama_bytes("kivi(group=64)", 8192, 512) == 185335808);
  check_closed_form({"kivi(group=2,residual=4)", "kivi(bits=4,group=4,residual=8)", "kivi"}, 4);
}

TEST_CASE("kivi composes with eviction, and refuses groups that do not fit", "[policy][kivi]") {
  const Trace trace = store_trace(40, 30, 3, 8, 2, 4);
  for (const char* spec : {"snapkv(budget=12,window=4)+kivi(group=4,residual=4)",
                           "h2o(budget=12)+kivi(group=4,residual=4)"}) {
    check_bound(spec, trace);
    CHECK(test::run_one(trace, spec, {}).ledger.death ==
          test::run_one(trace, std::string(spec).substr(0, std::string(spec).find('+')), {})
              .ledger.death);
  }
  const Geometry g = tiny_geometry(128, 100, 1);
  CHECK_THROWS_WITH(make_policy("kivi(residual=100)", g), Contains("nearest: 96"));
  CHECK_THROWS_WITH(make_policy("kivi(group=48,residual=96)", g), Contains("nearest: 32"));
  CHECK_THROWS_WITH(make_policy("kivi+think", g), Contains("store"));
  CHECK_THROWS_WITH(make_policy("snapkv(group=none)+kivi", geometry_of(trace, {})),
                    Contains("per KV head"));
  // head_dim 4 with groups of 32 would give half a byte of scales an entry.
  const Policy small = make_policy("kivi", tiny_geometry(4, 10, 1));
  CHECK_THAT(small.spec, Contains("group=16"));
}

// ---- kvquant ------------------------------------------------------------------------------------

TEST_CASE("kvquant rounds to levels inside calibrated ranges, and keeps outliers and token 0",
          "[policy][kvquant]") {
  // Calibration: tokens 1 .. 3, keys 0, 3, 6: centre 3, half width 3; levels 3 + 3 {-1, -1/3, 1/3,
  // 1}. 1.4 lies at -.53: level 2. 100 is outside. Values: each token's own range.
  TinyView view({{50}, {0}, {3}, {6}, {1.4F}, {100}, {5.9F}, {0}},
                {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}});
  const Decision d = aged("kvquant(bits=2,codebook=uniform)", view);
  CHECK(held_key(d, 0).empty());
  CHECK(held_key(d, 1)[0] == Approx(0));
  CHECK(held_key(d, 4)[0] == Approx(2));
  CHECK(held_key(d, 5)[0] == 100);
  CHECK(held_key(d, 6)[0] == Approx(6));
  CHECK(held_value(d, 5)[0] == Approx(5));  // a range of one number
  CHECK(d.changes.size() == 7);
  TinyView four({{0, 0, 0, 0}, {0, 0, 0, 0}, {1, 1, 1, 1}, {0, 0, 0, 0}},
                {{0, 0, 0, 0}, {0, 1.4F, 5.8F, 6}, {0, 0, 0, 0}, {0, 0, 0, 0}});
  const Values v = held_value(aged("kvquant(bits=2,codebook=uniform)", four), 1);
  CHECK(v[1] == Approx(2));
  CHECK(v[2] == Approx(6));
}

TEST_CASE("kvquant's codebook follows the data", "[policy][kvquant]") {
  // Calibrated keys take four values only, unevenly spaced: k-means finds them, equal steps do not.
  std::vector<Values> keys = {{0}};
  for (int i = 1; i < 81; ++i)
    keys.push_back({Values{-4, -3, 1, 4}[static_cast<std::size_t>(i % 4)]});
  TinyView view(keys, keys);
  const Decision nuq = aged("kvquant(bits=2)", view);
  const Decision even = aged("kvquant(bits=2,codebook=uniform)", view);
  CHECK(held_key(nuq, 9)[0] == Approx(-3).margin(0.01));
  CHECK(held_key(nuq, 10)[0] == Approx(1).margin(0.01));
  CHECK(held_key(even, 9)[0] == Approx(-4).margin(0.01));
}

TEST_CASE("kvquant quantises keys before their rotation", "[policy][kvquant]") {
  // One key at all positions: constant channels before the rotation, hence exact.
  const Rope rope{10000.0, 4, false, {1.0, 0.01}};
  std::vector<Values> keys;
  for (int t = 0; t < 12; ++t) {
    keys.push_back({1, 2, -0.5F, 4});
    rotate(rope, t, keys.back());
  }
  TinyView view(keys, keys);
  const Decision blind = aged("kvquant(bits=2)", view);
  view.set_rope(rope);
  const Decision d = aged("kvquant(bits=2)", view);
  double worst = 0;
  for (std::size_t t = 1; t < 12; ++t) {
    const auto token = static_cast<TokenIndex>(t);
    for (std::size_t c = 0; c < 4; ++c) {
      CHECK(held_key(d, token)[c] == Approx(keys[t][c]).margin(1e-4));
      worst =
          std::max(worst, std::abs(static_cast<double>(held_key(blind, token)[c] - keys[t][c])));
    }
  }
  CHECK(worst > 0.01);
}

TEST_CASE("kvquant's bytes are the paper's", "[policy][kvquant]") {
  const auto average_bits = [](const std::string& spec, std::int64_t dim, std::int64_t tokens) {
    const Geometry g = geometry_of(
        ModelGeometry{
            "one", 1, static_cast<int>(dim / 128), static_cast<int>(dim / 128), 128, 128, {0}, {}},
        tokens, 1, 0, 2);
    const Policy p = make_policy(spec, g);
    const Pass pass{0, tokens, tokens, tokens, {}};
    const std::int64_t bytes = p.payload(tokens, pass) * (dim / 128) + p.charge.at(tokens - 1);
    return 8.0 * static_cast<double>(bytes) / static_cast<double>(2 * dim * tokens);
  };
  struct Row {
    int bits;
    double bytes, average;
  };
  for (const Row& row : {Row{4, 311.60e6, 4.37}, Row{3, 240.30e6, 3.37}, Row{2, 169.01e6, 2.37}}) {
    const std::string spec = fmt::format("kvquant(bits={})", row.bits);
    const std::int64_t total =
        llama_bytes(spec, 8192, 512) + llama_charge(spec, 8192, 512).at(8703);
    CHECK(static_cast<double>(total) == Approx(row.bytes).epsilon(0.001));
    // The same from the formula itself, to a byte per head and the codebooks.
    const double d = 1024;
    const double t = 8703;
    const double exact =
        32 * (t * (2 * d * row.bits / 8 + 2 * 0.01 * d * 4 + 12) + 4096 + 4 * d + (4 << row.bits));
    CHECK(std::abs(static_cast<double>(total) - exact) <= 2 * 256);
    CHECK(average_bits(spec, 1024, 200000) == Approx(row.average).margin(0.005));
  }
  CHECK(average_bits("kvquant", 4096, 200000) == Approx(4.33).margin(0.005));
  // The released code at D = 4096: 4.72 bits, allocated for all tokens of the run.
  CHECK(average_bits("kvquant(accounting=deploy)", 4096, 200000) == Approx(4.72).margin(0.005));
  check_closed_form({"kvquant", "kvquant(bits=3,outliers=5%)", "kvquant(accounting=deploy)"}, 4);
  check_bound("h2o(budget=9)+kvquant", store_trace(40, 30, 3, 8, 2, 4));
}

// ---- qpruningkv ---------------------------------------------------------------------------------

TEST_CASE("qpruningkv keeps 16 / bits times the tokens of its pruner", "[policy][qpruningkv]") {
  const Trace trace = store_trace(44, 40, 5, 4, 2, 4);
  const auto deaths = [&](const std::string& spec) {
    return test::run_one(trace, spec, {}).ledger.death;
  };
  CHECK(deaths("qpruningkv(bits=8,budget=9)") == deaths("snapkv(budget=18,window=8)"));
  CHECK(deaths("qpruningkv(bits=4,budget=9)") == deaths("snapkv(budget=36,window=8)"));
  CHECK(deaths("qpruningkv(bits=16,budget=9)") == deaths("snapkv(budget=9,window=8)"));
  CHECK(decode_error(trace, "qpruningkv(bits=16,budget=9)") ==
        decode_error(trace, "snapkv(budget=9,window=8)"));
  CHECK(deaths("qpruningkv(bits=8)+h2o(budget=5)") == deaths("h2o(budget=10)"));
  CHECK(deaths("qpruningkv(bits=8)+snapkv(budget=7,window=3)") ==
        deaths("snapkv(budget=14,window=3)"));
  CHECK(deaths("qpruningkv(bits=8)+streaming_llm(sinks=1,window=6)") ==
        deaths("streaming_llm(sinks=1,window=13)"));
  CHECK_NOTHROW(deaths("qpruningkv(bits=8,budget=9)+pyramid"));
  // The kept prompt is quantised once; what is generated is not.
  const RunResult run = test::run_one(trace, "qpruningkv(bits=4,budget=2)", {});
  CHECK(run.ledger.changes[0].size() == 2 * 8);
  for (const Change& c : run.ledger.changes[0]) {
    CHECK(c.row == 40);
    CHECK(c.token < 40);
  }
}

TEST_CASE("qpruningkv's bytes are the nominal ones and their scales", "[policy][qpruningkv]") {
  // 512 tokens of 16 bits, nominal 64 MiB: 68, 72, 80 MiB; with 512 generated 132, 136, 144.
  struct Row {
    int bits;
    std::int64_t prompt, end;
    double ratio;
  };
  for (const Row& row : {Row{8, 71303168, 138412032, 1.0625}, Row{4, 75497472, 142606336, 1.125},
                         Row{2, 83886080, 150994944, 1.25}}) {
    const std::string spec = fmt::format("qpruningkv(bits={},budget=512)", row.bits);
    CHECK(llama_bytes(spec, 8192, 0) == row.prompt);
    CHECK(llama_bytes(spec, 8192, 512) == row.end);
    CHECK(static_cast<double>(row.prompt) / (64 << 20) == row.ratio);
  }
  // A budget in bytes counts the scales: 64 MiB of 288-byte entries in 256 heads.
  const Geometry g = geometry_of(load_model("llama-3.1-8b"), 8192, 1, 0, 2);
  const Policy p = make_policy("qpruningkv(bits=8,budget=64MiB)", g);
  CHECK(p.rules[0].sizing({0, 8192, 8192, 8192, {}}).tokens == (64 << 20) / 256 / 272);
  check_closed_form({"qpruningkv(budget=4)", "qpruningkv(bits=2,budget=30%)",
                     "qpruningkv(bits=8,budget=6)+snapkv(window=3)"},
                    4);
  check_bound("qpruningkv(bits=4)+h2o(budget=3)", store_trace(40, 30, 3, 8, 2, 4));
  CHECK_THROWS_WITH(make_policy("qpruningkv(q_group=48)", g), Contains("nearest: 32"));
  CHECK_THROWS_WITH(make_policy("chunked(qpruningkv(budget=10%))", g), Contains("lower precision"));
}

// ---- mikv ---------------------------------------------------------------------------------------

TEST_CASE("mikv demotes what h2o would evict, and nothing dies", "[policy][mikv]") {
  // Equal weights: the older, the heavier. Half of 4 entries: heavy 0 and the newest, 3. Then half
  // of 5 is 2: 0 and 4.
  const Trace trace = weights({0, 0, 0, 0, 0, 0}, 4, {}, {1, 2, 3, 4, 5, 6});
  const RunResult run = test::run_one(trace, "mikv(ratio=50%)", {});
  CHECK(changes(run) == std::vector<std::vector<int>>{{4, 1, 1}, {4, 2, 1}, {5, 3, 1}});
  CHECK(run.metrics.footprint == 1.0);
  CHECK(run.fidelity->all->mass_min == 1.0);
  // The high tier at 8 bits: entries enter it when they are not demoted at once.
  CHECK(changes(test::run_one(trace, "mikv(ratio=50%,hi=8)", {})) ==
        std::vector<std::vector<int>>{
            {4, 1, 1}, {4, 2, 1}, {4, 0, 2}, {4, 3, 2}, {5, 3, 1}, {5, 4, 2}});
  // Frozen: floor(75 % of 4) = 3 for good, while 75 % of 5 is 3, too, and of 6 it is 4.
  const Trace longer = weights(std::vector<double>(8, 0), 4, {}, std::vector<double>(8, 1));
  const auto low = [&](const char* mode) {
    return changes(test::run_one(longer, fmt::format("mikv(ratio=75%,ratio_mode={})", mode), {}))
        .size();
  };
  CHECK(low("frozen") == 1 + 1 + 1 + 1);   // rows 4, 5, 6, 7
  CHECK(low("running") == 1 + 1 + 0 + 0);  // 3 of 4, 3 of 5, 4 of 6, 5 of 7
}

TEST_CASE("mikv demotes another policy's victims", "[policy][mikv]") {
  const Trace trace = store_trace(30, 24, 4, 4, 2, 4);
  const RunResult alone = test::run_one(trace, "snapkv(budget=9,window=4)", {});
  const RunResult run = test::run_one(trace, "snapkv(budget=9,window=4)+mikv", {});
  std::size_t victims = 0;
  for (const std::uint32_t d : alone.ledger.death) victims += d < 30 ? 1 : 0;
  CHECK(run.ledger.changes[0].size() == victims);
  for (const Change& c : run.ledger.changes[0])
    CHECK(alone.ledger.deaths(0, c.head)[static_cast<std::size_t>(c.token)] == 24);
  CHECK(run.metrics.footprint == 1.0);
  CHECK(run.fidelity->decode->error_mean < alone.fidelity->decode->error_mean);
}

TEST_CASE("mikv balances keys before it rounds them", "[policy][mikv]") {
  // max|q| = (4, 1), max|k| = (1, 4): b = (2, 1/2). Key (1, 4) becomes (2, 2): one group, constant.
  TinyView view({{1, 4}, {1, 4}}, {{0, 3}, {0, 3}}, {{4, 1}, {-4, 1}});
  const Geometry g = tiny_geometry(2, 2, 1);
  for (const bool balancer : {true, false}) {
    const Policy policy = make_policy(fmt::format("mikv(lo=2,group=2,balancer={})", balancer), g);
    const auto store = policy.store(view.shape());
    Decision d;
    d.changes.push_back({2, 0, 0, store->demote(0, 0).value()});
    store->age(view, d);
    CHECK(held_key(d, 0) == Values{1, 4});  // the ends of a group of two are exact either way
    CHECK(held_value(d, 0) == Values{0, 3});
  }
  // Three channels: without the balancer 1.4 of (0, 1.4, 6) moves to 2. With max|q_1| = 5.6, b_1 =
  // 2: 2.8 of (0, 2.8, 6) moves to 2, which is 1.
  TinyView three({{0, 1.4F, 6}, {0, 1.4F, 6}}, {{0, 0, 0}, {0, 0, 0}}, {{0, 5.6F, 6}, {0, 0, 0}});
  for (const bool balancer : {true, false}) {
    const Policy policy = make_policy(fmt::format("mikv(lo=2,group=3,balancer={})", balancer),
                                      tiny_geometry(3, 2, 1));
    Decision d;
    d.changes.push_back({2, 0, 0, 1});
    policy.store(three.shape())->age(three, d);
    CHECK(held_key(d, 0)[1] == Approx(balancer ? 1 : 2));
    CHECK(held_key(d, 0)[2] == Approx(6));
  }
}

TEST_CASE("mikv's bytes are the published ones", "[policy][mikv]") {
  // 6,758 of 33,792 entries at 512 B, the others at 80 B: 32.5 % of the full cache.
  CHECK(llama_bytes("mikv", 32768, 1024) == 1439440896);
  const Charge charge = llama_charge("mikv", 32768, 1025);
  // While row 33,792 attends: 6,758 scores and its own, a bit an entry, the balancer.
  CHECK(charge.at(33792) == 256 * (6759 * 4) + 256 * 33793 / 8 + 65536);
  const double full = 131072.0 * 33792;
  CHECK(static_cast<double>(llama_bytes("mikv(hi=8)", 32768, 1024)) / full ==
        Approx(.231).margin(.0005));
  CHECK(static_cast<double>(llama_bytes("mikv(hi=4)", 32768, 1024)) / full ==
        Approx(.181).margin(.0005));
  check_closed_form({"mikv", "mikv(hi=8,lo=4,ratio=35%)", "mikv(ratio_mode=frozen,group=1)",
                     "snapkv(budget=7,window=2)+mikv", "h2o(budget=9)+mikv"},
                    4);
}

// ---- think --------------------------------------------------------------------------------------

TEST_CASE("think prunes the channels that matter least, but not for the newest",
          "[policy][think]") {
  // window 2: q^2 sums (1+9, 4, 16, 0+1) = (10, 4, 16, 1); k^2 sums over all three entries
  // (1, 9, 4+1, 100): products 10, 36, 80, 100: channels 0 and 1 go. recent 1: token 2 stays whole.
  TinyView view({{1, 0, 2, 0}, {0, 3, 0, 10}, {0, 0, 1, 0}},
                {{1, 1, 1, 1}, {1, 1, 1, 1}, {1, 1, 1, 1}},
                {{99, 99, 99, 99}, {1, 2, 4, 0}, {3, 0, 0, 1}});
  const Decision d = aged("think(ratio=50%,window=2,recent=1)", view);
  CHECK(d.changes.size() == 2);
  CHECK(held_key(d, 0) == Values{0, 0, 2, 0});
  CHECK(held_key(d, 1) == Values{0, 0, 0, 10});
  CHECK(held_key(d, 2).empty());
  CHECK(held_value(d, 0).empty());
  CHECK(aged("think(ratio=50%,window=2,preset=kvpress)", view).changes.size() == 3);
  // int(ratio d) channels: 24 % of 4 is none.
  CHECK(aged("think(ratio=24%,window=2,recent=1)", view).changes.empty());
}

TEST_CASE("think's bytes are the published ones", "[policy][think]") {
  CHECK(llama_bytes("think", 32768, 1024) == 3574382592);
  CHECK(llama_charge("think", 32768, 1024).at(32768) == 32768);
  CHECK(llama_charge("think", 32768, 1024).at(32767) == 0);
  check_closed_form({"think", "think(ratio=50%,recent=3)", "think(preset=kvpress)",
                     "snapkv(budget=9,window=2)+think(recent=2)"},
                    4);
  check_bound("h2o(budget=9)+think(recent=2)", store_trace(40, 30, 3, 8, 2, 4));
  const Geometry g = tiny_geometry(4, 10, 1);
  CHECK_THROWS_WITH(make_policy("think(ratio=100%)", g), Contains("at most 75%"));
  CHECK_THROWS_WITH(make_policy("think(ratio=10)", g), Contains("per cent"));
  CHECK_THROWS_WITH(make_policy("think(preset=kvpress,recent=3)", g), Contains("recent=0"));
}

// ---- less ---------------------------------------------------------------------------------------

TEST_CASE("less evicts as its evictor does", "[policy][less]") {
  const Trace trace = store_trace(40, 30, 6, 4, 2, 4);
  const auto deaths = [&](const std::string& spec) {
    return test::run_one(trace, spec, {}).ledger.death;
  };
  for (const char* variant : {"fit", "favor", "mean", "none", "oracle"}) {
    CHECK(deaths(fmt::format("less(budget=10,variant={})", variant)) == deaths("h2o(budget=10)"));
  }
  CHECK(deaths("less(budget=10,variant=plus)") == deaths("h2o(budget=14)"));
  CHECK(deaths("h2o(heavy=3,recent=5)+less") == deaths("h2o(heavy=3,recent=5)"));
  CHECK(deaths("streaming_llm(sinks=2,window=6)+less") ==
        deaths("streaming_llm(sinks=2,window=6)"));
  CHECK(deaths("snapkv(budget=9,window=4)+less") == deaths("snapkv(budget=9,window=4)"));
  CHECK(decode_error(trace, "less(budget=10,variant=none)") ==
        decode_error(trace, "h2o(budget=10)"));
}

TEST_CASE("a state of equal keys is the attention of its victims", "[policy][less]") {
  // All keys are equal, so every group has the weight of its members, and values are summed
  // exactly.
  const Trace equal =
      weights(std::vector<double>(12, 0.5), 8, {}, {1, 7, -3, 2, 5, 1, 8, 2, 0, 4, 9, -6});
  CHECK(decode_error(equal, "h2o(budget=4)") > 0.05);
  CHECK(decode_error(equal, "h2o(budget=4)+less(variant=mean)") < 1e-6);
  CHECK(decode_error(equal, "h2o(budget=4)+less(variant=fit,rank=1)") < 1e-6);
  CHECK(decode_error(equal, "h2o(budget=4)+less(variant=oracle,rank=2)") < 1e-3);
  // Two kinds of keys: their attention has rank one in every row, their mean key is neither.
  std::vector<double> keys;
  for (int i = 0; i < 24; ++i) keys.push_back(i % 2 == 0 ? 0.0 : 3.0);
  std::vector<double> values;
  for (int i = 0; i < 24; ++i) values.push_back(i % 5 - 1.5);
  const Trace two = weights(keys, 16, {}, values);
  CHECK(decode_error(two, "h2o(budget=4)+less(variant=fit,rank=1)") < 1e-6);
  CHECK(decode_error(two, "h2o(budget=4)+less(variant=mean)") > 0.01);
}

TEST_CASE("a mean key stands for all victims, in units of the row's maximum", "[policy][less]") {
  // Victims with keys 0 and 2, values 1 and 3: count 2, mean key 1, mean value 2. A row with q =
  // 1/2 and maximum 1/4 adds 2 exp(1/2 - 1/4) of weight and twice that of value.
  TinyView view({{0}, {5}, {2}, {9}}, {{1}, {0}, {3}, {0}});
  const auto store = make_policy("less(variant=mean)", tiny_geometry(1, 4, 1)).store(view.shape());
  CHECK_FALSE(store->adds_output());
  Decision d;
  d.evictions = {{0, 0, 0, 0}, {0, 2, 0, 1}};
  store->age(view, d);
  REQUIRE(store->adds_output());
  std::vector<double> numerator = {10};
  double denominator = 1;
  store->add_output(0, Values{0.5F}, 0.25, numerator, denominator);
  CHECK(denominator == Approx(1 + 2 * std::exp(0.25)));
  CHECK(numerator[0] == Approx(10 + 4 * std::exp(0.25)));
  store->add_output(0, Values{1e6F}, -1e6, numerator, denominator);  // far above the row's maximum
  CHECK(std::isfinite(numerator[0] / denominator));
}

TEST_CASE("random features of exp(q.k) are right on average", "[policy][less]") {
  // q = k = 1/2, scale 1: E exp(w (q + k) - 1/4) = exp(1/4): with many features errors are small.
  const Trace trace =
      weights(std::vector<double>(12, 0.5), 8, {}, {1, 7, -3, 2, 5, 1, 8, 2, 0, 4, 9, -6});
  const double none = decode_error(trace, "h2o(budget=4)");
  CHECK(decode_error(trace, "h2o(budget=4)+less(variant=favor,rank=1024)") < none / 3);
  CHECK(decode_error(trace, "less(budget=4,variant=favor,seed=1)") ==
        decode_error(trace, "less(budget=4,variant=favor,seed=1)"));
  CHECK(decode_error(trace, "less(budget=4,variant=favor,seed=1)") !=
        decode_error(trace, "less(budget=4,variant=favor,seed=2)"));
}

TEST_CASE("a factorisation of what is to come bounds what a state can do", "[policy][less]") {
  const Trace trace = store_trace(60, 48, 11, 4, 2, 4);
  const double none = decode_error(trace, "less(budget=12,variant=none)");
  const double oracle = decode_error(trace, "less(budget=12,variant=oracle)");
  CHECK(oracle < none / 2);
  CHECK(oracle < decode_error(trace, "less(budget=12,variant=fit)"));
  const Policy policy = make_policy("less(variant=oracle)", geometry_of(trace, {}));
  CHECK(policy.bound);
  CHECK_THAT(policy.notes.back(), Contains("reads the future"));
}

TEST_CASE("less's bytes are the evictor's, a state's and the kernels'", "[policy][less]") {
  const std::string spec = "h2o(heavy=819,recent=819)+less";
  CHECK(llama_bytes(spec, 32768, 1024) == 214695936);
  const std::int64_t kernels = 139344LL * 32 * 32 * 2;
  CHECK(llama_charge(spec, 32768, 1024).once == 1056768 + kernels);
  CHECK(llama_charge(spec + "(state=fp16,weights=none)", 32768, 1024).once == 528384);
  CHECK(llama_charge(spec, 32768, 1024).entry == 4);
  CHECK(llama_charge("streaming_llm+less", 32768, 1024).entry == 0);
  CHECK(llama_charge("less(variant=plus)", 32768, 1024).once == 0);
  check_closed_form(
      {"less(budget=7)", "less(budget=30%,variant=plus)", "streaming_llm(sinks=1,window=5)+less"},
      4);
  CHECK_THROWS_WITH(
      make_policy("h2o(group=none)+less", geometry_of(store_trace(9, 8, 1, 4, 1, 2), {})),
      Contains("per KV head"));
}

// ---- together -----------------------------------------------------------------------------------

TEST_CASE("numbers are rounded to half precision as IEEE 754 says", "[policy][quantise]") {
  for (const double x : {0.0, 1.0, 0.1, -3.14159, 65503.9, 6.1e-5, 5.9e-8, 2.9e-8, 1e-9, 2049.0}) {
    CHECK(static_cast<double>(policies::round_half(static_cast<float>(x))) ==
          test::rounded_to(static_cast<double>(static_cast<float>(x)), Dtype::f16));
  }
  CHECK(policies::round_half(1e9F) == 65504.0F);
}

TEST_CASE("min/max quantisation keeps the ends and rounds the rest to the grid",
          "[policy][quantise]") {
  Values x = {0, 1.4F, 3, 6};  // 2 bits: step 2, codes 0, .7 -> 1, 1.5 -> 2 (even), 3
  policies::round_trip(x, 2);
  CHECK(x == Values{0, 2, 4, 6});
  Values same = {5, 5};
  policies::round_trip(same, 4);
  CHECK(same == Values{5, 5});
  Values two = {0, 3, 10, 11.4F, 13};  // groups of 2, the last is shorter
  policies::round_trip_groups(two, 2, 2);
  CHECK(two[2] == 10);
  CHECK(two[4] == 13);
  CHECK(policies::packed_bytes(128, 2, 32) == 32 + 16);
  CHECK(policies::packed_bytes(4, 2, 32) == 1 + 4);
}

TEST_CASE("bytes of every store come out of a score trace, too", "[policy]") {
  test::TraceSpec spec;
  spec.meta = store_trace(20, 14, 1, 4, 1, 1).meta();
  test::LayerSpec layer;
  for (int row = 0; row < 20; ++row) {
    layer.rows.push_back(row);
    layer.lse.push_back(0);
    for (int j = 0; j < 20; ++j) layer.dense.push_back(j <= row ? 1.0 / (row + 1) : 0.0);
  }
  spec.layers.push_back(layer);
  const Trace trace = test::make_trace(spec);
  for (const char* name :
       {"kivi(group=2,residual=4)", "kvquant", "qpruningkv(budget=2)", "mikv", "think(recent=2)",
        "less(budget=5)", "snapkv(budget=5,window=2)+merge"}) {
    INFO(name);
    const Geometry g = geometry_of(trace, {});
    CHECK(test::run_one(trace, name, {}).metrics.peak_bytes ==
          predict(make_policy(name, g), g, {}).peak_bytes);
  }
}
