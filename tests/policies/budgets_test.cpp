// SPDX-License-Identifier: Apache-2.0
// Budgets over heads and layers: worked examples, small enough to check by hand.
#include <algorithm>
#include <cmath>
#include <numeric>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/groups.h"
#include "sim/predict/analytic.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"
#include "tests/support/files.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::capacities;
using test::deaths;
using test::Folder;
using test::geometry;
using test::head_weights;
using test::kept;
using test::kept_sizes;
using test::random_heads;
using test::refusal;
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

using Tokens = std::vector<int>;

using Set = std::vector<int>;

// Two layers of one head: keys are logits.
Trace two_layers(const std::vector<double>& first, const std::vector<double>& second, int prompt) {
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = spec.meta.head_dim = 1;
  spec.meta.tokens = static_cast<std::int64_t>(first.size());
  spec.meta.prompt_tokens = prompt;
  spec.meta.score_scale = 1;
  for (const auto* keys : {&first, &second}) {
    spec.layers.push_back({});
    spec.layers.back().q.assign(first.size(), 1.0);
    spec.layers.back().k = *keys;
  }
  return test::make_trace(spec);
}

}  // namespace

// ---- baklava ------------------------------------------------------------------------------------

TEST_CASE("baklava fills budgets in proportion to importance, between bounds",
          "[policy][baklava]") {
  const Folder folder;
  const std::string file = folder.write("[[3, 1], [1, 1]]");
  const Trace trace = random_heads(40, 30, 4, 2);
  Geometry g = geometry_of(trace, {});
  g.trace = nullptr;
  const auto budgets = [&](const std::string& more) {
    return capacities(
        make_policy(fmt::format("baklava(budget=12,profile=\"{}\",{})", file, more), g), g);
  };
  // 48 = 24 + 3 * 8; the least is 4 sinks and 4 more.
  CHECK(budgets("power=1") == std::vector<TokenCount>{24, 8, 8, 8});
  CHECK(budgets("power=0") == std::vector<TokenCount>{12, 12, 12, 12});
  // 27 : 1 : 1 : 1 of 48 is 43.2 and 1.6: the others are lifted to 8.
  CHECK(budgets("power=3") == std::vector<TokenCount>{24, 8, 8, 8});
  // Without sinks the least is 4: the first is cut at the prompt's 30, the others share 18.
  CHECK(budgets("power=3,sinks=0") == std::vector<TokenCount>{30, 6, 6, 6});
  // 3 : 1 : 1 : 1 to the power of .5 is 1.7321 : 1 : 1 : 1: 17.57, 10.14; largest remainder first.
  CHECK(budgets("power=0.5") == std::vector<TokenCount>{18, 10, 10, 10});

  // Heads stream: sinks and the newest, in decode too.
  const std::string text = fmt::format("baklava(budget=12,power=1,profile=\"{}\")", file);
  const RunResult run = test::run_one(trace, text, {});
  CHECK(kept(run, 0, 1) == Tokens{0, 1, 2, 3, 26, 27, 28, 29});
  CHECK(kept(run, 0, 0).size() == 24);
  CHECK(run.ledger.deaths(0, 1)[26] == 31);
  CHECK(run.metrics.peak_bytes.overhead == 4 * 2 * 2);
  CHECK(run.metrics.entry_rows == predict(make_policy(text, g), g, {}).entry_rows);
  CHECK(make_policy(text, g).closed_form);
  CHECK_FALSE(make_policy("baklava", g).closed_form);
  const std::string negative = folder.write("[[3, 1], [1, -1]]");
  CHECK_THROWS_WITH(make_policy(fmt::format("baklava(profile=\"{}\")", negative), g),
                    Contains("expected none below 0"));
  CHECK_THROWS_WITH(make_policy("baklava+snapkv(budget=9)", g),
                    Contains("both bring their own scorer"));
}

TEST_CASE("baklava counts a head as important that changes the values it reads",
          "[policy][baklava]") {
  // Head 0 reads itself (keys grow by 20 a row): its output is its value. Head 1 reads token 0,
  // whose value points the other way: importance 2, but for row 0. B = 10: 8 is the least, 12 are
  // left.
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = 2;
  spec.meta.head_dim = 1;
  spec.meta.tokens = 24;
  spec.meta.prompt_tokens = 20;
  spec.meta.score_scale = 1;
  spec.layers.push_back({});
  for (int t = 0; t < 24; ++t) {
    spec.layers[0].q.insert(spec.layers[0].q.end(), {1, 1});
    spec.layers[0].k.insert(spec.layers[0].k.end(), {20.0 * t, t == 0 ? 40.0 : 0.0});
    spec.layers[0].v.insert(spec.layers[0].v.end(), {1, t == 0 ? -1.0 : 1.0});
  }
  const Trace trace = test::make_trace(spec);
  CHECK(kept_sizes(trace, "baklava(budget=10,power=1)") == std::vector<std::size_t>{8, 12});
  // Nothing is lost outside sinks and windows, so the grid has nothing to gain.
  CHECK(kept_sizes(trace, "baklava(budget=10)") == std::vector<std::size_t>{10, 10});
  // Without values: how little a row reads itself. Head 0 reads only itself.
  spec.layers[0].v.clear();
  const Trace blind = test::make_trace(spec);
  CHECK(kept_sizes(blind, "baklava(budget=10,power=1)") == std::vector<std::size_t>{8, 12});
  CHECK_THAT(make_policy("baklava", geometry_of(blind, {})).notes.front(),
             Contains("baklava-like stand-in") && Contains("how little a row reads itself"));
}

TEST_CASE("baklava's grid lengthens the windows that lose mass", "[policy][baklava]") {
  // Head 0 is flat and loses what lies outside its window; head 1 reads only itself. More power
  // gives head 0 more, until head 1 is at the least.
  const std::vector<double> flat(44, 0.0);
  std::vector<double> self(44);
  for (std::size_t t = 0; t < self.size(); ++t) self[t] = 20.0 * static_cast<double>(t);
  const Trace trace = head_weights({{flat, self}}, 40);
  CHECK(kept_sizes(trace, "baklava(budget=12)") == std::vector<std::size_t>{16, 8});
}

TEST_CASE("baklava's budgets always sum up to the uniform ones", "[policy][baklava]") {
  const Trace trace = random_heads(60, 50, 6, 3, 3);
  const Geometry g = geometry_of(trace, {});
  for (const int budget : {1, 5, 9, 20, 49}) {
    for (const char* power : {"auto", "0.5", "4"}) {
      const auto all =
          capacities(make_policy(fmt::format("baklava(budget={},power={})", budget, power), g), g);
      CHECK(std::accumulate(all.begin(), all.end(), TokenCount{0}) == 9 * budget);
    }
  }
}

// ---- fastgen ------------------------------------------------------------------------------------

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

// ---- dbudgetkv ----------------------------------------------------------------------------------

TEST_CASE("dbudgetkv keeps sinks and the shortest window that holds the norm",
          "[policy][dbudgetkv]") {
  // The last row: 100 at the sink, then 3, .001, 4. Without the sink the norm is 5, of the newest
  // alone 4: a fifth is lost. With it, 100 of 100.12; 100.08 with the newest.
  const auto logs = [](std::vector<double> row) {
    for (double& x : row) x = std::log(x);
    return row;
  };
  const Trace trace = head_weights({{logs({100, 3, 0.001, 4, 1})}}, 4);
  const auto run = [&](const std::string& more) {
    return kept(trace, fmt::format("dbudgetkv(sinks=1,skip=0,{})", more));
  };
  CHECK(run("threshold=0.21") == Tokens{0, 3});
  CHECK(run("threshold=0.19") == Tokens{0, 1, 2, 3});
  CHECK(run("threshold=0") == Tokens{0, 1, 2, 3});
  CHECK(run("threshold=1") == Tokens{0, 3});
  CHECK(run("threshold=0.01,norm=paper") == Tokens{0});
  CHECK(run("threshold=0.001,norm=paper") == Tokens{0, 3});
  CHECK(run("threshold=0.00001,norm=paper") == Tokens{0, 1, 2, 3});
  // Two heads: norms 5 and 1, of the newest 4 and 1: (3 - 2.5) / 3 is lost, on average; one cut.
  const Trace two = head_weights({{logs({93, 3, 1e-4, 4, 1}), logs({99, 1e-4, 1e-4, 1, 1})}}, 4);
  for (const int head : {0, 1}) {
    CHECK(kept(two, "dbudgetkv(sinks=1,skip=0,threshold=0.17)", 0, head) == Tokens{0, 3});
    CHECK(kept(two, "dbudgetkv(sinks=1,skip=0,threshold=0.16)", 0, head) == Tokens{0, 1, 2, 3});
  }
  // Generated tokens stay.
  CHECK(
      test::run_one(trace, "dbudgetkv(sinks=1,skip=0,threshold=0.21)", {}).ledger.deaths(0, 0)[4] ==
      5);
}

TEST_CASE("dbudgetkv leaves the first two layers whole", "[policy][dbudgetkv]") {
  const Trace trace = random_heads(60, 50, 4, 2, 4);
  const auto all = kept_sizes(trace, "dbudgetkv(threshold=0.3)");
  CHECK(std::vector<std::size_t>(all.begin(), all.begin() + 4) == std::vector<std::size_t>(4, 50));
  for (std::size_t i = 4; i < 8; ++i) CHECK(all[i] < 50);
  CHECK(kept_sizes(trace, "dbudgetkv(threshold=0.3,skip=0)")[0] < 50);
  CHECK_FALSE(make_policy("dbudgetkv", geometry_of(trace, {})).closed_form);
  CHECK_THAT(make_policy("dbudgetkv", geometry(4, 4, 2, 50)).notes.front(),
             Contains("at most everything"));
}

TEST_CASE("dbudgetkv's window never grows with the threshold", "[policy][dbudgetkv]") {
  const Trace trace = random_heads(60, 50, 4, 2, 1, 17);
  for (const char* norm : {"code", "paper"}) {
    for (const int rows : {1, 5}) {
      std::size_t last = 50;
      for (const char* threshold : {"0", "0.001", "0.01", "0.05", "0.2", "0.5", "0.9", "1"}) {
        INFO(norm << " " << rows << " " << threshold);
        const auto all = kept_sizes(
            trace,
            fmt::format("dbudgetkv(skip=0,norm={},rows={},threshold={})", norm, rows, threshold));
        CHECK(all[0] == all[1]);
        CHECK(all[0] <= last);
        last = all[0];
      }
      CHECK(last < 50);
    }
  }
  const Knob knob = *make_policy("dbudgetkv", geometry_of(trace, {})).knob;
  CHECK(knob.value(10000) == "0");
  CHECK(knob.value(9900) == "0.01");
}

// ---- simlayerkv ---------------------------------------------------------------------------------

TEST_CASE("simlayerkv lets the layers stream that look at sinks and recent tokens",
          "[policy][simlayerkv]") {
  // Layer 0 looks at the sink, layer 1 at token 2, in the middle.
  const Trace trace = two_layers({9, 0, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 9, 0, 0, 0, 0, 0, 0}, 6);
  const std::string policy = "simlayerkv(sinks=1,recent=2,variant=kvpress,decode=stream)";
  // Kept: the sink and 2 - 1 recent tokens, after every decode row too.
  CHECK(deaths(trace, policy, {}, 0) == Set{9, 6, 6, 6, 6, 7, 8, 9, 9});
  CHECK(deaths(trace, policy, {}, 1) == Set(9, 9));
  CHECK(deaths(trace, "simlayerkv(sinks=1,recent=2,variant=kvpress)", {}, 0) ==
        Set{9, 6, 6, 6, 6, 9, 9, 9, 9});
  CHECK(test::run_one(trace, policy, {}).ledger.charge.once == 1);  // 2 bits
  CHECK(deaths(trace, "simlayerkv(sinks=1,recent=2,variant=kvpress,threshold=1)", {}, 0) ==
        Set(9, 9));
  // Prompts of sinks + recent + last tokens are left alone, in decode too.
  CHECK(deaths(trace, "simlayerkv(sinks=1,recent=4,variant=kvpress,threshold=0)", {}, 0) ==
        Set(9, 9));
}

TEST_CASE("simlayerkv(variant=kvpress) does not count the judging row's own column",
          "[policy][simlayerkv]") {
  // Six equal weights; sink 0 and recent 3, 4: exactly one half.
  const Trace trace = two_layers(std::vector<double>(8, 0.0), std::vector<double>(8, 0.0), 6);
  CHECK(kept(trace, "simlayerkv(sinks=1,recent=2,variant=kvpress,threshold=0.5)").size() == 6);
  CHECK(kept(trace, "simlayerkv(sinks=1,recent=2,variant=kvpress,threshold=0.499)") == Set{0, 5});
  // Rows 4 and 5 over columns 0, 2, 3: (3/5 + 3/6) / 2 = .55
  CHECK(kept(trace, "simlayerkv(sinks=1,recent=2,variant=kvpress,last=2,threshold=0.54)") ==
        Set{0});
  CHECK(kept(trace, "simlayerkv(sinks=1,recent=2,variant=kvpress,last=2,threshold=0.56)").size() ==
        6);
  CHECK_THAT(refusal(trace, "simlayerkv(recent=2,last=3,variant=kvpress)"),
             Contains("expected at least 3"));
  CHECK_THAT(refusal(trace, "chunked(simlayerkv)"), Contains("leaves the prompt alone"));
  CHECK_THAT(refusal(trace, "chunked(simlayerkv(variant=kvpress))"), Contains("no budget"));
}

TEST_CASE("simlayerkv and observed_attention need probabilities only", "[policy][simlayerkv]") {
  // Row 4 of a prompt of 5: .6 on the sink, .1 on token 3, before it.
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = spec.meta.head_dim = 1;
  spec.meta.tokens = 6;
  spec.meta.prompt_tokens = 5;
  spec.layers.push_back({});
  for (int row = 0; row < 6; ++row) {
    spec.layers[0].rows.push_back(row);
    for (int key = 0; key < 6; ++key) {
      const double equal = key <= row ? 1.0 / (row + 1) : 0.0;
      spec.layers[0].dense.push_back(row != 4 ? equal
                                              : std::vector{.6, .1, .1, .1, .1, 0.}[index(key)]);
    }
    spec.layers[0].lse.push_back(0);
  }
  const Trace trace = test::make_trace(spec);
  CHECK(kept(trace, "simlayerkv(sinks=1,recent=1,variant=kvpress,threshold=0.69)") == Set{0});
  CHECK(kept(trace, "simlayerkv(sinks=1,recent=1,variant=kvpress,threshold=0.71)").size() == 5);
  CHECK(kept(trace, "observed_attention(budget=1)") == Set{0});
  CHECK_THROWS_AS(kept(trace, "knorm(budget=1)"), TraceError);
}

// ---- together -----------------------------------------------------------------------------------

TEST_CASE("what is fitted may be fitted on another trace than the replayed one",
          "[policy][head_scores]") {
  const Folder folder;
  // Random vectors; the keys of one head are so long that each row attends to one of them.
  const auto spec = [](std::size_t head) {
    test::TraceSpec out = test::random_spec({.layers = 2,
                                             .tokens = 40,
                                             .prompt_tokens = 30,
                                             .query_heads = 8,
                                             .kv_heads = 4,
                                             .head_dim = 4,
                                             .seed = head});
    for (test::LayerSpec& layer : out.layers) {
      for (std::size_t i = 0; i < layer.k.size(); ++i) layer.k[i] *= i / 4 % 4 == head ? 20 : 1;
    }
    return out;
  };
  const Trace here = test::make_trace(spec(1));
  const Trace there = test::make_trace(spec(2));
  test::TraceSpec named = spec(2);
  named.name = "other";
  const std::string file = folder.write(named);
  const auto budgets = [](const Geometry& g, const std::string& policy) {
    return capacities(make_policy(policy, g), g);
  };
  Geometry blind = geometry_of(here, {});
  blind.trace = nullptr;
  for (const std::string policy :
       {"duoattention(sparsity=0.5,sinks=1,window=4,", "prulong(sparsity=0.5,sinks=1,window=4,",
        "headkv(budget=20,window=2,temp=4,"}) {
    INFO(policy);
    const std::string from_file = fmt::format("{}heads=\"{}\")", policy, file);
    const auto expected = budgets(geometry_of(there, {}), policy + "heads=auto)");
    CHECK(expected != budgets(geometry_of(here, {}), policy + "heads=auto)"));
    CHECK(budgets(geometry_of(here, {}), from_file) == expected);
    CHECK(budgets(blind, from_file) == expected);
    const Policy made = make_policy(from_file, blind);
    CHECK_THAT(made.notes.front(), Contains("on '" + file + "'") && !Contains("future"));
  }

  // The replayed trace under its own name is no other trace.
  const Trace itself = Trace::open(file);
  const std::string again = fmt::format("prulong(sparsity=0.5,heads=\"{}\")", file);
  CHECK_THAT(make_policy(again, geometry_of(itself, {})).notes.front(),
             Contains("on '" + file + "' (reads the future)"));

  // baklava looks at the first half of the replayed prompt, and at all of another trace's.
  test::TraceSpec half = spec(1);
  half.meta.prompt_tokens = 15;
  half.name = "half";
  const std::string baklava =
      fmt::format("baklava(budget=12,power=4,profile=\"{}\")", folder.write(half));
  const auto own = budgets(geometry_of(here, {}), "baklava(budget=12,power=4)");
  CHECK(std::count(own.begin(), own.end(), 12) < 8);
  CHECK(budgets(geometry_of(here, {}), baklava) == own);
  CHECK(budgets(blind, baklava) == own);
  CHECK(make_policy(baklava, blind).closed_form);
  CHECK_THAT(make_policy(baklava, blind).notes.front(), Contains("half.safetensors"));

  // A trace of all layers serves a replay of some of them; of other heads it serves none.
  Geometry second = blind;
  second.layer_ids = {1};
  const std::string headkv = fmt::format("headkv(budget=20,window=2,temp=4,heads=\"{}\")", file);
  const auto all = budgets(blind, headkv);
  CHECK(budgets(second, headkv) == std::vector<TokenCount>(all.begin() + 4, all.end()));
  CHECK_THROWS_WITH(make_policy(baklava, geometry(2, 4, 2, 30)),
                    Contains("8 query heads and 4 KV heads, expected"));
  CHECK_THROWS_WITH(make_policy(baklava, geometry(3, 8, 4, 30)), Contains("the same 3 layers"));
}
