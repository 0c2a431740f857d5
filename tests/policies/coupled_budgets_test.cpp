// SPDX-License-Identifier: Apache-2.0
// Budgets that all layers share: worked examples, small enough to check by hand.
#include <cmath>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/policies/cake_rule.h"
#include "sim/predict/analytic.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::head_weights;
using test::kept;
using test::refusal;

namespace {

using Set = std::vector<int>;
using Rows = std::vector<int>;

Rows deaths_of(const RunResult& run, int layer) {
  const auto all = run.ledger.deaths(layer, 0);
  return {all.begin(), all.end()};
}

// Two layers of one head: norms of keys.
Trace norms(const std::vector<double>& first, const std::vector<double>& second, int prompt) {
  return head_weights({{first}, {second}}, prompt);
}

}  // namespace

// ---- global -------------------------------------------------------------------------------------

TEST_CASE("global ranks the entries of all layers together", "[policy][global]") {
  // knorm keeps small keys. 2 entries a head are 4: 1, 2 and 3 of layer 0, 2.5 of layer 1.
  const Trace trace = norms({1, 2, 3, 4, 5, 0}, {3.5, 2.5, 9, 8, 7, 0}, 5);
  CHECK(kept(trace, "global(knorm(budget=2))", 0) == Set{0, 1, 2});
  CHECK(kept(trace, "global(knorm(budget=2))", 1) == Set{1});
  CHECK(kept(trace, "knorm(budget=2)", 1) == Set{0, 1});
  // All 10 of them: nobody leaves.
  CHECK(kept(trace, "global(knorm(budget=5))", 1).size() == 5);
  // Equal scores: the lower token first, then the lower layer. 2 of 6, then 4.
  const Trace equal = norms({1, 1, 1, 1}, {1, 1, 1, 1}, 3);
  CHECK(kept(equal, "global(knorm(budget=1))", 1) == Set{0});
  CHECK(kept(equal, "global(knorm(budget=2))", 0) == Set{0, 1});
}

TEST_CASE("global's safeguard keeps the best of every head", "[policy][global]") {
  const Trace trace = norms({1, 2, 3, 0}, {9, 8, 7, 0}, 3);
  CHECK(kept(trace, "global(knorm(budget=1))", 0) == Set{0, 1});
  CHECK(kept(trace, "global(knorm(budget=1))", 1) == Set{});
  CHECK(kept(trace, "global(knorm(budget=1),alpha=1)", 0) == Set{0});
  CHECK(kept(trace, "global(knorm(budget=1),alpha=1)", 1) == Set{2});
}

TEST_CASE("global keeps every head at what it got, in decode", "[policy][global]") {
  // h2o of 2: the newest, and one heavy hitter a head, 2 together. Sums of the first two entries
  //   layer 0: weights e^20, e^21, then nothing: 1 + 2 x .269 = 1.54 and 2 x .731 = 1.46
  //   layer 1: e^-20, 1, e^20: 1 and 1
  // so layer 0 has both, and the newest; layer 1 the newest alone. Token 2 of layer 0 is the
  // lightest when row 3 has come.
  const Trace trace = norms({20, 21, -20, -20, -20}, {-20, 0, 20, 20, 20}, 3);
  const RunResult run = test::run_one(trace, "global(h2o(budget=2))", {});
  CHECK(deaths_of(run, 0) == Rows{5, 5, 4, 5, 5});
  CHECK(deaths_of(run, 1) == Rows{3, 3, 4, 5, 5});
}

TEST_CASE("a budget of all layers waits for all of them", "[policy][global]") {
  // Of the first example: layer by layer, both layers hold their 5 when layer 0 copies its 3.
  const Trace trace = norms({1, 2, 3, 4, 5, 0}, {3.5, 2.5, 9, 8, 7, 0}, 5);
  Accounting layerwise;
  layerwise.layerwise = true;
  const auto entries = [&](const std::string& policy, const Accounting& accounting) {
    return test::run_one(trace, policy, {}, accounting).metrics.peak_bytes.kv / (2 * 2);
  };
  CHECK(entries("global(knorm(budget=2))", layerwise) == 5 + 3 + 5);
  CHECK(entries("global(knorm(budget=2))", {}) == 5 + 5);
  CHECK(entries("knorm(budget=2)", layerwise) == 2 + 5 + 2);  // layer 0 is cut already
  // One length of 4 bytes a head, and a score of 2 bytes for each of the 10 entries.
  CHECK(test::run_one(trace, "global(knorm(budget=2))", {}).metrics.peak_bytes.overhead ==
        2 * 4 + 10 * 2);
  // Without a trace: evenly, to the same peak.
  Geometry g = geometry_of(trace, {});
  g.trace = nullptr;
  const Policy blind = make_policy("global(knorm(budget=2))", g);
  CHECK(predict(blind, g, layerwise).peak_bytes.kv == (5 + 2 + 5) * 4);
  CHECK(predict(blind, g, {}).peak_bytes.total == 5 * 2 * 4 + 28);
}

TEST_CASE("budgets of all layers do not depend on threads, blocks or other policies",
          "[policy][global]") {
  const Trace trace = test::random_trace(70, 50, 12, 3);
  const std::vector<std::string> specs = {"global(h2o(budget=9))",
                                          "global(snapkv(budget=9,window=3))",
                                          "cake(budget=12,window=4)", "lava(budget=12,window=4)"};
  EngineOptions options;
  options.chunk = 16;
  options.threads = 2;
  options.block_rows = 3;
  std::vector<Policy> all;
  for (const std::string& spec : specs)
    all.push_back(make_policy(spec, geometry_of(trace, options)));
  const std::vector<Replay> together = replay(trace, all, options);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    INFO(specs[i]);
    EngineOptions alone;
    alone.chunk = 16;
    alone.threads = 1;
    CHECK(test::run_one(trace, specs[i], alone).ledger.death == together[i].ledger.death);
    CHECK(together[i].ledger.waits_for_layers);
  }
}

TEST_CASE("a budget of all layers is refused where it has no meaning", "[policy][global]") {
  const Trace trace = test::random_trace(40, 30, 1);
  const char* const once = "shares one budget among all layers, once, at the prompt's end";
  CHECK_THAT(refusal(trace, "chunked(global(snapkv(budget=9)))"), Contains(once));
  CHECK_THAT(refusal(trace, "chunked(cake(budget=9))"), Contains(once));
  CHECK_THAT(refusal(trace, "decoding(global(snapkv),target=9)"), Contains(once));
  CHECK_THAT(refusal(trace, "global(streaming_llm(budget=9))"), Contains(once));
  CHECK_THAT(refusal(trace, "global(chunked(snapkv))"), Contains("put chunked() around the whole"));
  CHECK_THAT(refusal(trace, "global(adakv(budget=9))"),
             Contains("adakv shares out a budget itself"));
  CHECK_THAT(refusal(trace, "global(pyramidkv(budget=9))"), Contains("shares out a budget itself"));
  CHECK_THAT(refusal(trace, "global(full)"), Contains("full ranks nothing"));
  CHECK_THAT(refusal(trace, "global(tova(budget=9))"),
             Contains("one set for all heads of a layer"));
  CHECK_THAT(refusal(trace, "pyramid+lava(budget=9)"), Contains("both bring their own"));
}

// ---- cake ---------------------------------------------------------------------------------------

namespace {

// Two layers of one head. The last row but one of a prompt of 10 gives token 0 so many times what
// each of the seven others gets, and next to nothing to itself and its neighbour; later rows read
// everything alike.
Trace first_token_weighs(double in_layer_0, double in_layer_1) {
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = spec.meta.head_dim = 1;
  spec.meta.tokens = 13;
  spec.meta.prompt_tokens = 10;
  spec.meta.score_scale = 1;
  for (const double weight : {in_layer_0, in_layer_1}) {
    test::LayerSpec& layer = spec.layers.emplace_back();
    layer.k.assign(13, 0.0);
    layer.k[0] = std::log(weight);
    layer.k[8] = layer.k[9] = -40;
    layer.q.assign(13, 0.0);
    layer.q[8] = 1;
  }
  return test::make_trace(spec);
}

}  // namespace

TEST_CASE("cake's layers share by entropy and variance", "[policy][cake]") {
  // Row 8: .3 and seven times .1, or .65 and .05; row 9: .1 for each of ten.
  //   layer 0: entropy 1.973 + 1.842 = 3.815; variance .2^2 / 2 = .02; preference .0763
  //   layer 1: entropy 1.329 + 1.842 = 3.171; variance .55^2 / 2 + 7 x .05^2 / 2 = .16; .5073
  // Of (5 - 2) x 2 = 6: .78 and 5.22, rounded down; the one that is over goes to the first.
  const Trace trace = first_token_weighs(3, 13);
  const std::string cake = "cake(budget=5,window=2,kernel=1)";
  CHECK(kept(trace, cake, 0) == Set{0, 8, 9});
  CHECK(kept(trace, cake, 1) == Set{0, 1, 2, 3, 4, 8, 9});
  // tau2=100: variances hardly count, .962 to .982: 3.815 : 3.171 nearly: 3.24 and 2.76 of 6.
  CHECK(kept(trace, "cake(budget=5,window=2,kernel=1,tau2=100)", 0).size() == 4 + 2);
  // Every decode row cuts each layer to its own number again; rows read all alike, so the last of
  // the cache's places before the window leaves.
  const RunResult run = test::run_one(trace, cake, {});
  CHECK(deaths_of(run, 0) == Rows{13, 10, 10, 10, 10, 10, 10, 10, 11, 12, 13, 13, 13});
  CHECK(deaths_of(run, 1)[8] == 11);
  // Scores of 8 entries of both layers, 2 bytes each.
  CHECK(run.metrics.timeline.overhead_bytes[9] == 2 * 8 * 2);
  CHECK(run.metrics.timeline.overhead_bytes[10] == 0);
  // Cut as layers arrive: layer 0 alone may keep all 6 and its window while layer 1 has 10. A
  // budget of 7 leaves layer 0 whole.
  const auto note = [&](const std::string& policy) {
    const Policy made = make_policy(policy, geometry_of(trace, {}));
    return made.notes.empty() ? "" : made.notes.back();
  };
  CHECK_THAT(note(cake), Contains("peak at 18 entries a head over all layers, not at 20"));
  CHECK_THAT(note("cake(budget=7,window=2)"), Contains("peak at 20 entries"));
  CHECK(note("cake(budget=8,window=2)") == "");
}

TEST_CASE("cake leaves a prompt of its budget and window alone, until the first decode row",
          "[policy][cake]") {
  const Trace trace = first_token_weighs(3, 13);
  CHECK(kept(trace, "cake(budget=8,window=2,kernel=1)", 0).size() == 10);
  const RunResult run = test::run_one(trace, "cake(budget=8,window=2,kernel=1)", {});
  CHECK(run.metrics.timeline.resident_entries[10] == 2 * 11);
  CHECK(run.metrics.timeline.resident_entries[11] == 2 * 9);
  CHECK(kept(trace, "cake(budget=7,window=2,kernel=1)", 0).size() < 10);
  // A budget of the window: the newest.
  CHECK(kept(trace, "cake(budget=2,window=2)", 0) == Set{8, 9});
}

TEST_CASE("cake hands out evenly what is over", "[policy][cake]") {
  using policies::cake_shares;
  using Counts = std::vector<TokenCount>;
  CHECK(cake_shares(std::vector<double>{1, 3}, 8, 8) == Counts{2, 6});
  CHECK(cake_shares(std::vector<double>{1, 3}, 8, 5) == Counts{3, 5});  // one beyond the prompt
  CHECK(cake_shares(std::vector<double>{1, 1, 1}, 10, 9) == Counts{4, 3, 3});
  CHECK(cake_shares(std::vector<double>{0, 0}, 6, 9) == Counts{3, 3});
  CHECK(cake_shares(std::vector<double>{1, 9}, 10, 4) == Counts{4, 4});  // no room for the rest
}

// ---- lava ---------------------------------------------------------------------------------------

TEST_CASE("lava's layers share by entropy, and heads by value-weighted votes", "[policy][lava]") {
  // A window of one row, which gives itself next to nothing. Layer 0: four times .25 x 1 in head 0;
  // 5/8 and three times 1/8 in head 1, x 8. As shares of 9: entropy 1.457 of ln 8 = 2.079: .701.
  // Layer 1: all alike: 1. Of (3 - 1) x 2 = 4: 1.65 and 2.35: 1 and 2 entries a head.
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = 2;
  spec.meta.head_dim = 1;
  spec.meta.tokens = 6;
  spec.meta.prompt_tokens = 5;
  spec.meta.score_scale = 1;
  for (const double of_head_1 : {5.0, 1.0}) {
    test::LayerSpec& layer = spec.layers.emplace_back();
    for (int t = 0; t < 6; ++t) {
      const double own = t == 4 ? -40 : 0;
      layer.q.insert(layer.q.end(), {1, 1});
      layer.k.insert(layer.k.end(), {own, t == 0 ? std::log(of_head_1) : own});
      layer.v.insert(layer.v.end(), {-1, t == 3 && of_head_1 > 1 ? 8.0 : 1.0});
    }
  }
  const Trace trace = test::make_trace(spec);
  // Layer 0, 2 of 8: 5 and the first 1, both of head 1. Layer 1, 4 of 8 that tie: lower tokens.
  const RunResult paper = test::run_one(trace, "lava(budget=3,window=1,kernel=1,alpha=0)", {});
  CHECK(kept(paper, 0, 0) == Set{4});
  CHECK(kept(paper, 0, 1) == Set{0, 1, 4});
  CHECK(kept(paper, 1, 0) == Set{0, 1, 4});
  CHECK(kept(paper, 1, 1) == Set{0, 1, 4});
  // alpha .5: round(c / 2 + int(.5 x 3)), whatever the layer got.
  const RunResult code = test::run_one(trace, "lava(budget=3,window=1,kernel=1,alpha=0.5)", {});
  CHECK(kept(code, 0, 0) == Set{0, 4});
  CHECK(kept(code, 0, 1) == Set{0, 1, 4});
  CHECK(kept(code, 1, 0) == Set{0, 1, 4});
  // ... or int(.5 x 1) in layer 0.
  const RunResult meant =
      test::run_one(trace, "lava(budget=3,window=1,kernel=1,alpha=0.5,floor=layer)", {});
  CHECK(kept(meant, 0, 0) == Set{4});
  CHECK(kept(meant, 0, 1) == Set{0, 4});
  CHECK(kept(meant, 1, 1) == Set{0, 1, 4});
  // Decode appends. 4 lengths of 4 bytes; scores of 2 bytes of 4 entries of 4 heads.
  CHECK(meant.ledger.deaths(0, 1)[5] == 6);
  CHECK(meant.metrics.timeline.overhead_bytes[4] == 4 * 4 + 2 * 4 * 4);
  CHECK(meant.metrics.timeline.overhead_bytes[5] == 4 * 4);
}
