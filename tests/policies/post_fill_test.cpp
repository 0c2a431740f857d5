// SPDX-License-Identifier: Apache-2.0
// Policies that evict once, after the prompt: worked examples, small enough to check by hand.
#include <cmath>
#include <numeric>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/models/model_geometry.h"
#include "sim/policies/chunkkv_rule.h"
#include "sim/predict/analytic.h"
#include "sim/replay/requirements.h"
#include "tests/support/cases.h"
#include "tests/support/files.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::capacities;
using test::deaths;
using test::geometry;
using test::head_weights;
using test::kept;
using test::kept_sizes;
using test::random_heads;
using test::random_trace;
using test::Table;
using test::weights;
using test::weights_spec;

namespace {

using Rows = std::vector<int>;

using Tokens = std::vector<int>;

}  // namespace

// ---- the baselines of arXiv 2506.17121 ----------------------------------------------------------

TEST_CASE("preset=prulong prefills all but the last token, and keeps multiples of 64",
          "[policy][snapkv][pyramidkv]") {
  const auto sized = [](const std::string& spec, int prompt) {
    const Geometry g = geometry(4, 8, 2, prompt, 10);
    const Policy policy = make_policy(spec, g);
    const PassPlan plan = passes_of(policy, g);
    CHECK(plan.ends.front() == prompt - 1);
    return policy.rules.front().sizing(pass_at(plan, 0));
  };
  // int(.3 x 1000) = 300, of 999 rows.
  CHECK(sized("snapkv(budget=30%,preset=prulong)", 1000).tokens == 320);
  CHECK(sized("snapkv(budget=30%,preset=prulong)", 1000).rows == 999);
  CHECK(sized("pyramidkv(budget=30%,preset=prulong)", 1000).tokens == 320);
  CHECK(sized("snapkv(budget=1%,preset=prulong)", 1000).tokens == 64);  // the window
  CHECK(sized("snapkv(budget=65,preset=prulong)", 1000).tokens == 128);
  const Geometry g = geometry(4, 8, 2, 100, 10);
  const Policy policy = make_policy("snapkv(budget=10%,preset=prulong)", g);
  CHECK_THAT(policy.spec, Contains("window=64,kernel=5,pool=avg,group=none,order=pool_then_group"));
  CHECK(policy.per_query_head);
  const Requirements asked = requirements_of(policy, g);
  REQUIRE(asked.observed.size() == 1);
  CHECK(asked.observed[0].begin == 35);  // the window's rows: 35 .. 98
  CHECK(asked.observed[0].end == 99);
  CHECK_FALSE(make_policy("snapkv(preset=prulong,group=mean)", g).per_query_head);
  // Chunks: the program's count, not the metric's.
  Geometry chunks = geometry(4, 8, 2, 1000, 10);
  chunks.chunk = 400;
  const Policy chunked = make_policy("chunked(snapkv(budget=30%,preset=prulong))", chunks);
  CHECK_THAT(chunked.spec, Contains("count=implementation"));
  CHECK_THAT(chunked.spec, Contains("small=window"));
  CHECK(passes_of(chunked, chunks).ends[2] == 999);
  const auto kept = predict(chunked, chunks, {}).after[0] / 8;  // 120 + 120 + int(.3 x 199) < 64
  CHECK(kept == 120 + 120 + 64 + 1 + 10);
}

TEST_CASE("preset=prulong does not ask the prompt's last row", "[policy][snapkv]") {
  // Row 95 votes for token 90, row 99 for token 89, the window is 4. 64 stay of 0 .. 98: the window
  // 95 .. 98, token 90, and of equal ones the first 59. Token 99 goes through decode.
  std::vector<std::vector<double>> unit(102, std::vector<double>(102, 0.0));
  std::vector<std::vector<double>> rows = unit;
  for (std::size_t t = 0; t < unit.size(); ++t) unit[t][t] = 1;
  rows[95][90] = 9;
  rows[99][89] = 9;
  const Trace trace = test::one_head(unit, 100, {}, rows);
  Rows expected(102, 102);
  std::fill(expected.begin() + 59, expected.begin() + 95, 99);
  expected[90] = 102;
  CHECK(deaths(trace, "snapkv(budget=64,preset=prulong,window=4,kernel=1)") == expected);
}

// ---- snapkv -------------------------------------------------------------------------------------

TEST_CASE("snapkv keeps the voted candidates and its window, once, after the prompt",
          "[policy][snapkv]") {
  //  keys      0  1  2  3  4 | 5 6 (window) | 7 8 generated
  const Trace trace = weights({0, 3, 1, 2, 0, 0, 0, 9, 9}, 7);
  CHECK(deaths(trace, "snapkv(budget=4,window=2,kernel=1)") ==
        std::vector<int>{7, 9, 7, 9, 7, 9, 9, 9, 9});
  // Max pooling of 3 lifts both neighbours of key 1 to its level: 0, 1, 2 tie, lower indices stay.
  CHECK(deaths(trace, "snapkv(budget=4,window=2,kernel=3)") ==
        std::vector<int>{9, 9, 7, 7, 7, 9, 9, 9, 9});
  // A budget within the window keeps the newest `budget` entries; one that holds everything is
  // idle.
  CHECK(deaths(trace, "snapkv(budget=1,window=2,kernel=1)") ==
        std::vector<int>{7, 7, 7, 7, 7, 7, 9, 9, 9});
  CHECK(deaths(trace, "snapkv(budget=7,window=2,kernel=1)") == std::vector<int>(9, 9));
}

TEST_CASE("average pooling counts the padding and divides by the kernel", "[policy][snapkv]") {
  // Candidates 0..3 with votes p: pooled (0 + p0 + p1)/3, (p0 + p1 + p2)/3, ..., (p2 + p3 + 0)/3.
  // Key 0 is the best vote, but its pooled score lacks a neighbour: 1 and 2 win.
  const Trace trace = weights({1.0, 0.5, 0.6, 0.5, 0}, 5);
  CHECK(deaths(weights({1.0, 0.5, 0.6, 0.5, 0, 0}, 5),
               "snapkv(budget=3,window=1,kernel=3,pool=avg)") ==
        std::vector<int>{5, 6, 6, 5, 6, 6});
  CHECK(trace.meta().tokens == 5);
}

TEST_CASE("group=none keeps one set per query head", "[policy][snapkv]") {
  // Two query heads of one KV head look at opposite keys.
  test::TraceSpec spec;
  spec.meta.query_heads = 2;
  spec.meta.kv_heads = spec.meta.head_dim = 1;
  spec.meta.tokens = 4;
  spec.meta.prompt_tokens = 3;
  spec.meta.score_scale = 1;
  spec.layers.push_back({});
  spec.layers[0].q = {1, -1, 1, -1, 1, -1, 1, -1};
  spec.layers[0].k = {2, -2, 0, 0};
  const Trace trace = test::make_trace(spec);
  CHECK(deaths(trace, "snapkv(budget=2,window=1,kernel=1,group=none)", {}, 0, 0) ==
        std::vector<int>{4, 3, 4, 4});
  CHECK(deaths(trace, "snapkv(budget=2,window=1,kernel=1,group=none)", {}, 0, 1) ==
        std::vector<int>{3, 4, 4, 4});
  const RunResult run = test::run_one(trace, "snapkv(budget=2,window=1,kernel=1,group=none)", {});
  CHECK(run.ledger.heads == 2);
}

// ---- pyramidkv ----------------------------------------------------------------------------------

TEST_CASE("pyramidkv spreads its budget as the authors' code does", "[policy][pyramidkv]") {
  // Llama-3.1-8B, n = 32768, w = 8, beta = 20: first and last layer, and the bytes of all layers
  // after 1,024 generated tokens; seeds: KVCache-Factory's integer arithmetic, computed by hand.
  Geometry g;
  g.model_layers = 32;
  for (int l = 0; l < 32; ++l) g.layer_ids.push_back(l);
  g.query_heads = 32;
  g.kv_heads = 8;
  g.k_dim = g.v_dim = 128;
  g.tokens = 32768 + 1024;
  g.prompt = g.evict_point = 32768;
  struct Row {
    int budget, first, last;
    std::int64_t bytes, exact_bytes;
  };
  for (const Row& row :
       {Row{128, 242, 25, 151715840, 150994944}, Row{1024, 1990, 68, 269090816, 268435456},
        Row{2048, 3986, 111, 402718720, 402653184}}) {
    for (const bool exact : {false, true}) {
      const Policy policy = make_policy(
          fmt::format("pyramidkv(budget={},rounding={})", row.budget, exact ? "exact" : "code"), g);
      const Sizing sizing = policy.rules[0].sizing({0, 32768, 32768, 32768, {}});
      std::int64_t bytes = 0;
      for (int l = 0; l < 32; ++l) {
        bytes += 8 * 512 * (policy.rules[0].budget->capacity(g.shape(l, false), 0, sizing) + 1024);
      }
      CHECK(bytes == (exact ? row.exact_bytes : row.bytes));
      if (exact) continue;
      CHECK(policy.rules[0].budget->capacity(g.shape(0, false), 0, sizing) == row.first);
      CHECK(policy.rules[0].budget->capacity(g.shape(31, false), 0, sizing) == row.last);
    }
  }
}

TEST_CASE("pyramidkv with kvpress's rounding follows its formula", "[policy][pyramidkv]") {
  // n = 1024, 8 layers, window 64, beta 20. Half: the first layer is cut at n - w = 960, the last
  // gets 2 * 512 - 960 = 64. A fifth: 204.8 / 20 is less than the window, so round(204.8)
  // everywhere. Four fifths: 960 down to 678.4 in steps of 40.2286.
  const Geometry g = geometry(8, 1, 1, 1024);
  const auto layers = [&](const std::string& budget) {
    return capacities(
        make_policy(fmt::format("pyramidkv(budget={},window=64,rounding=kvpress)", budget), g), g);
  };
  CHECK(layers("50%") == std::vector<TokenCount>{960, 832, 704, 576, 448, 320, 192, 64});
  CHECK(layers("20%") == std::vector<TokenCount>(8, 205));
  CHECK(layers("204") == std::vector<TokenCount>(8, 204));
  CHECK(layers("80%") == std::vector<TokenCount>{960, 920, 880, 839, 799, 759, 719, 678});
  CHECK(layers("100%") == std::vector<TokenCount>(8, kAll));
}

// ---- chunkkv ------------------------------------------------------------------------------------

TEST_CASE("chunkkv keeps the chunks with the largest sums, and the window on top",
          "[policy][chunkkv]") {
  // Window: token 8. Chunks of two: 20.1 + 1, 7.4 + 7.4, 1 + 1, 1 + 18.2. B = 4: two chunks.
  const Trace trace = head_weights({{{3, 0, 2, 2, 0, 0, 0, 2.9, 0, 0}}}, 9);
  CHECK(kept(trace, "chunkkv(budget=4,length=2,window=1)") == Tokens{0, 1, 6, 7, 8});
  CHECK(kept(trace, "chunkkv(budget=5,length=2,window=1)") == Tokens{0, 1, 6, 7, 8});
  CHECK(kept(trace, "chunkkv(budget=1,length=2,window=1)") == Tokens{8});
  CHECK(kept(trace, "chunkkv(budget=9,length=2,window=1)").size() == 9);
  // Equal chunks: the lower ones stay.
  const Trace equal = head_weights({{std::vector<double>(10, 0.0)}}, 9);
  CHECK(kept(equal, "chunkkv(budget=4,length=2,window=1)") == Tokens{0, 1, 2, 3, 8});
  // The last chunk is short: if it stays, less is held than in whole chunks.
  const Trace ragged = head_weights({{{3, 0, 2, 2, 0, 0, 0, 0, 4, 0, 0}}}, 10);
  CHECK(kept(ragged, "chunkkv(budget=4,length=2,window=1)") == Tokens{0, 1, 8, 9});
  const auto exact = [](const Trace& t) {
    return make_policy("chunkkv(budget=4,length=2,window=1)", geometry_of(t, {})).closed_form;
  };
  CHECK(exact(trace));
  CHECK_FALSE(exact(ragged));
  CHECK_THAT(make_policy("chunkkv(length=5,window=8)", geometry(1, 1, 1, 50)).notes.front(),
             Contains("an upper bound"));
}

TEST_CASE("chunkkv with chunks of one token is a top-k of the whole layer", "[policy][chunkkv]") {
  const Trace one = random_heads(50, 40, 4, 1);
  for (const int budget : {1, 6, 20}) {
    CHECK(test::run_one(one, fmt::format("chunkkv(budget={},length=1,window=3)", budget), {})
              .ledger.death ==
          test::run_one(
              one, fmt::format("snapkv(budget={},window=3,kernel=1,group=sum)", budget + 3), {})
              .ledger.death);
  }
  const RunResult many =
      test::run_one(random_heads(50, 40, 4, 2), "chunkkv(budget=12,length=3,window=3)", {});
  for (int l = 0; l < 2; ++l) CHECK(kept(many, l, 0) == kept(many, l, 1));
}

TEST_CASE("chunkkv as kvpress does it counts chunks, and its window wins", "[policy][chunkkv]") {
  // Window 2 of 8: tokens 6 and 7 score above all. Pooled over five, the peak at 0 lifts tokens 0,
  // 1, 2: chunk {0, 1} has it twice. int(4 * .5) = 2 chunks.
  const Trace trace = head_weights({{{3, 0, 0, 0, 0, 0, 0, 0, 0}}}, 8);
  const std::string text = "chunkkv(preset=kvpress,window=2,length={},budget={})";
  CHECK(kept(trace, fmt::format(fmt::runtime(text), 2, "50%")) == Tokens{0, 1, 6, 7});
  CHECK(kept(trace, fmt::format(fmt::runtime(text), 2, "10%")) == Tokens{6, 7});
  // Three chunks, the last of two tokens: int(3 * .75) = 2, of which the last is one.
  CHECK(kept(trace, fmt::format(fmt::runtime(text), 3, "75%")) == Tokens{0, 1, 2, 6, 7});
  // Shorter than a chunk: by token. Token 2 sees 0 .. 4, token 1 sees 0 .. 3.
  CHECK(kept(trace, fmt::format(fmt::runtime(text), 20, "50%")) == Tokens{1, 2, 6, 7});
}

TEST_CASE("chunkkv as kvpress does it keeps 40 of 410 chunks of 8k", "[policy][chunkkv]") {
  // int(410 * (1 - .9)) = 40 in doubles (410 * .1 would be 41). The tail of 12 tokens lies inside
  // the window and is one of them: 39 * 20 + 12. Without a tail 800 tokens: 100 MiB of
  // Llama-3.1-8B.
  Geometry g = geometry(32, 32, 8, 8192);
  CHECK(capacities(make_policy("chunkkv(preset=kvpress,budget=10%)", g), g)[0] == 792);
  g = geometry(32, 32, 8, 8200);
  const auto all = capacities(make_policy("chunkkv(preset=kvpress,budget=10%)", g), g);
  CHECK(std::accumulate(all.begin(), all.end(), TokenCount{0}) * 512 == 100 << 20);
  CHECK(all[0] == 800);
  // n = 1024: 52 chunks, 26, 41 and 10 of them, the last one of four tokens.
  g = geometry(1, 1, 1, 1024);
  for (const auto& [budget, chunks] : {std::pair{"50%", 26}, {"80%", 41}, {"20%", 10}}) {
    CHECK(capacities(make_policy(fmt::format("chunkkv(preset=kvpress,budget={})", budget), g),
                     g)[0] == 20 * (chunks - 1) + 4);
  }
}

TEST_CASE("chunkkv reuses the set of a block's first layer", "[policy][chunkkv]") {
  const Trace trace = random_heads(50, 40, 4, 2, 4);
  const RunResult alone = test::run_one(trace, "chunkkv(budget=12,length=3,window=3)", {});
  const RunResult reused = test::run_one(trace, "chunkkv(budget=12,length=3,window=3,reuse=2)", {});
  CHECK(kept(reused, 0, 0) == kept(alone, 0, 0));
  CHECK(kept(reused, 1, 1) == kept(alone, 0, 1));
  CHECK(kept(reused, 1, 0) != kept(alone, 1, 0));
  CHECK(kept(reused, 2, 0) == kept(alone, 2, 0));
  CHECK(kept(reused, 3, 0) == kept(alone, 2, 0));
  CHECK(reused.notes.empty());
  // A trace of layers 1, 2, 3 lacks layer 0: 1 decides for itself, and 3 copies 2.
  test::TraceSpec spec = test::random_spec({.layers = 3, .tokens = 50, .prompt_tokens = 40});
  spec.meta.layer_ids = {1, 2, 3};
  spec.meta.model_layers = 4;
  const Trace subset = test::make_trace(spec);
  const RunResult part = test::run_one(subset, "chunkkv(budget=12,length=3,window=3,reuse=2)", {});
  const RunResult own = test::run_one(subset, "chunkkv(budget=12,length=3,window=3)", {});
  CHECK(kept(part, 0, 0) == kept(own, 0, 0));
  CHECK(kept(part, 1, 0) == kept(own, 1, 0));
  CHECK(kept(part, 2, 0) == kept(own, 1, 0));
  REQUIRE_FALSE(part.notes.empty());
  CHECK_THAT(part.notes.front(), Contains("1 stored layers lack"));
  CHECK_THROWS_WITH(make_policy("chunkkv(reuse=0)", geometry(2, 2, 2, 30)),
                    Contains("expected 1 to"));
}

TEST_CASE("chunkkv gated by entropy cuts chunks that one token makes important",
          "[policy][chunkkv]") {
  // Means 3, 2 and 1; entropies 0, 1 and 1 of 1: the first is important, and spiky.
  const std::vector<double> scores = {9, 0, 0, 2, 2, 2, 1, 1, 1};
  const std::vector<TokenIndex> tokens = {0, 1, 2, 3, 4, 5, 6, 7, 8};
  policies::ChunkScores::Settings settings{};
  settings.length = 3;
  settings.spiky = 1;
  const auto kept = [&](TokenCount places) {
    std::vector<char> leaves(9, 0);
    policies::pick_by_entropy(settings, tokens, scores, places, 9, leaves);
    std::vector<int> out;
    for (std::size_t i = 0; i < leaves.size(); ++i) {
      if (leaves[i] == 0) out.push_back(static_cast<int>(i));
    }
    return out;
  };
  CHECK(kept(5) == std::vector<int>{0, 3, 4, 5, 6});
  // One place is left over when all chunks have had theirs.
  CHECK(kept(8) == std::vector<int>{0, 1, 3, 4, 5, 6, 7, 8});
  settings.spiky = 2;
  CHECK(kept(5) == std::vector<int>{0, 1, 3, 4, 5});
  const Trace trace = test::random_trace(60, 50, 3);
  CHECK(test::kept_sizes(trace, "chunkkv(budget=23,preset=entropy)") ==
        std::vector<std::size_t>(4, 23));
  CHECK_THAT(test::refusal(trace, "chunkkv(preset=entropy,length=4)"),
             Catch::Matchers::Contains("expected chunks longer"));
}

TEST_CASE("chunkkv runs chunk by chunk", "[policy][chunkkv]") {
  const Trace trace = random_heads(50, 40, 4, 2);
  EngineOptions chunks;
  chunks.chunk = 20;
  // A chunk of 20: 10 + 2 entries, six chunks of two, and its window of two.
  CHECK(kept_sizes(trace, "chunked(chunkkv(budget=50%,length=2,window=2))", chunks) ==
        std::vector<std::size_t>(4, 28));
  CHECK_THROWS_WITH(
      make_policy("chunked(chunkkv(preset=kvpress),variant=patched)", geometry_of(trace, chunks)),
      Contains("needs a policy with an observation window"));
}

// ---- sagekv -------------------------------------------------------------------------------------

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

// ---- judgeq -------------------------------------------------------------------------------------

TEST_CASE("judgeq keeps what its queries attend to", "[policy][judgeq]") {
  // All queries are 1, so every centre is 1 and an entry's score grows with its key.
  const Trace trace = weights({0, 3, 1, 2, 0, 9}, 5);
  CHECK(deaths(trace, "judgeq(budget=2)") == std::vector<int>{5, 6, 5, 6, 5, 6});
  CHECK(deaths(trace, "judgeq(budget=2,window=1)") == std::vector<int>{5, 6, 5, 5, 6, 6});
  // Pooling by 3 lifts the neighbours 0 and 2 of key 1; ties go to the lower token.
  CHECK(deaths(trace, "judgeq(budget=2,pool=3)") == std::vector<int>{6, 6, 5, 5, 5, 6});
  // The decode row alone asks for the smallest keys.
  const Trace other = weights({0, 3, 1, 2, 0, 9}, 5, {1, 1, 1, 1, 1, -1});
  CHECK(deaths(other, "judgeq(budget=2,scorer=oracle)") == std::vector<int>{6, 5, 5, 5, 6, 6});
  CHECK(deaths(other, "judgeq(budget=2,scorer=static)") == std::vector<int>{5, 6, 5, 6, 5, 6});
  const Table file("scores", {1, 1, 6}, {1, 0, 5, 0, 2, 0});
  CHECK(deaths(trace, fmt::format("judgeq(budget=2,scorer=file,weights=\"{}\")", file.name())) ==
        std::vector<int>{5, 5, 6, 5, 6, 6});
}

TEST_CASE("judgeq rotates its queries to the positions after the prompt", "[policy][judgeq]") {
  // One pair of channels of one radian a position, the same query and key everywhere before rotary:
  // the logit of a query at p and a key at j is cos(p - j), largest for j = p, p - 6, p - 13, ...
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = 1;
  spec.meta.head_dim = 2;
  spec.meta.tokens = 20;
  spec.meta.prompt_tokens = 19;
  spec.meta.score_scale = 1;
  spec.meta.rope = Rope{};
  spec.meta.rope->dim = 2;
  spec.layers.push_back({});
  for (int r = 0; r < 20; ++r) {
    for (const double x : {std::cos(r), std::sin(r)}) {
      spec.layers[0].q.push_back(3 * x);
      spec.layers[0].k.push_back(x);
    }
  }
  const Trace trace = test::make_trace(spec);
  // One query at position 19: cos(19 - j) is largest at j = 13 (.960), then at 0 (.989): 0 and 13.
  std::vector<int> expected(20, 19);
  expected[0] = expected[13] = expected[19] = 20;
  for (const char* scorer : {"static", "ridge"})
    CHECK(deaths(trace, fmt::format("judgeq(budget=2,m=1,scorer={})", scorer)) == expected);
}

TEST_CASE("no query hits more of the answer's keys than the oracle", "[policy][judgeq]") {
  for (std::uint64_t seed = 1; seed < 6; ++seed) {
    const Trace trace = random_trace(70, 60, seed);
    const RunResult oracle = test::run_one(trace, "judgeq(scorer=oracle,budget=15)", {});
    for (const char* scorer : {"static", "ridge"}) {
      const RunResult run =
          test::run_one(trace, fmt::format("judgeq(scorer={},budget=15)", scorer), {});
      int hits = 0;
      for (std::size_t i = 0; i < run.ledger.death.size(); ++i)
        hits += run.ledger.death[i] > 60 && oracle.ledger.death[i] > 60 && i % 70 < 60 ? 1 : 0;
      CHECK(hits <= 4 * 15);
      CHECK(hits > 4 * 15 * 15 / 60);  // chance
      CHECK(run.fidelity->decode->mass_mean <= oracle.fidelity->decode->mass_mean);
    }
  }
}

TEST_CASE("judgeq charges its soft tokens, and their entries while they attend",
          "[policy][judgeq]") {
  const Geometry g = geometry_of(load_model("Llama-3.1-8B"), 1000, 24, 0, 2);
  const Policy policy = make_policy("judgeq(budget=100)", g);
  CHECK(policy.charge.once == 256 * 1024);
  CHECK(policy.charge.at(999) - policy.charge.once == 32 * 32 * 8 * g.entry_bytes());
  CHECK(policy.charge.at(998) == policy.charge.once);
  CHECK(policy.charge.at(1000) == policy.charge.once);
  CHECK_THROWS_WITH(make_policy("judgeq(pool=2)", g), Contains("nearest: 3"));
  CHECK_THROWS_AS(make_policy("judgeq(scorer=file)", g), ConfigError);
  CHECK_THROWS_AS(make_policy("judgeq(scorer=oracle,weights=x)", g), ConfigError);
}
