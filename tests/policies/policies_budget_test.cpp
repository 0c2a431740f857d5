// SPDX-License-Identifier: Apache-2.0
// Budgets over heads, layers and chunks: worked examples, small enough to check by hand.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/predict/analytic.h"
#include "sim/run/run.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;

namespace {

// head_dim 1, scale 1, q = 1: key j of a head has weight exp(k[j]) in every row.
//   keys [layers][heads][tokens]
Trace weights(const std::vector<std::vector<std::vector<double>>>& keys, int prompt,
              int query_heads_per_head = 1) {
  test::TraceSpec spec;
  const std::size_t heads = keys[0].size();
  const std::size_t tokens = keys[0][0].size();
  spec.meta.kv_heads = static_cast<int>(heads);
  spec.meta.query_heads = spec.meta.kv_heads * query_heads_per_head;
  spec.meta.head_dim = 1;
  spec.meta.tokens = static_cast<std::int64_t>(tokens);
  spec.meta.prompt_tokens = prompt;
  spec.meta.score_scale = 1;
  for (const auto& layer : keys) {
    spec.layers.push_back({});
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t h = 0; h < heads; ++h) spec.layers.back().k.push_back(layer[h][t]);
    }
    spec.layers.back().q.assign(tokens * static_cast<std::size_t>(spec.meta.query_heads), 1.0);
  }
  return test::make_trace(spec);
}

using Tokens = std::vector<int>;

// Prompt tokens of one (layer, head) that outlive the prompt.
Tokens kept(const RunResult& run, int layer, int head) {
  const auto deaths = run.ledger.deaths(layer, head);
  const RowIndex prompt = run.ledger.plan.prompt;
  Tokens out;
  for (RowIndex t = 0; t < prompt; ++t) {
    if (static_cast<RowIndex>(deaths[static_cast<std::size_t>(t)]) > prompt)
      out.push_back(static_cast<int>(t));
  }
  return out;
}

Tokens kept(const Trace& trace, const std::string& policy, int layer = 0, int head = 0) {
  return kept(test::run_one(trace, policy, {}), layer, head);
}

std::vector<std::size_t> sizes(const Trace& trace, const std::string& policy,
                               const EngineOptions& options = {}) {
  const RunResult run = test::run_one(trace, policy, options);
  std::vector<std::size_t> out;
  for (int l = 0; l < run.ledger.layers; ++l) {
    for (int h = 0; h < run.ledger.heads; ++h) out.push_back(kept(run, l, h).size());
  }
  return out;
}

Trace random_trace(int tokens, int prompt, int query_heads, int kv_heads, int layers = 2,
                   std::uint64_t seed = 3) {
  return test::make_trace(test::random_spec({.layers = layers,
                                             .tokens = tokens,
                                             .prompt_tokens = prompt,
                                             .query_heads = query_heads,
                                             .kv_heads = kv_heads,
                                             .seed = seed}));
}

Geometry geometry(int layers, int query_heads, int kv_heads, int prompt, int generated = 0) {
  Geometry g;
  g.model_layers = layers;
  for (int l = 0; l < layers; ++l) g.layer_ids.push_back(l);
  g.query_heads = query_heads;
  g.kv_heads = kv_heads;
  g.k_dim = g.v_dim = 128;
  g.prompt = g.evict_at = prompt;
  g.tokens = prompt + generated;
  return g;
}

// What the first rule of a policy lets each (layer, head) hold after the prompt.
std::vector<TokenCount> capacities(const Policy& policy, const Geometry& g) {
  const Rule& rule = policy.rules[0];
  const Sizing sizing = rule.sizing({0, g.evict_at, g.evict_at, g.prompt, {}});
  std::vector<TokenCount> out;
  for (int l = 0; l < g.layers(); ++l) {
    const LayerShape shape = g.shape(l, policy.per_query_head);
    for (int h = 0; h < shape.heads; ++h) out.push_back(rule.budget->capacity(shape, h, sizing));
  }
  return out;
}

class Folder {
 public:
  Folder()
      : path_(std::filesystem::temp_directory_path() /
              fmt::format("kvspan_budget_{}", std::random_device{}())) {
    std::filesystem::create_directories(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] std::string write(const std::string& text) const {
    const std::string name = (path_ / "heads.json").string();
    std::ofstream(name) << text;
    return name;
  }
  [[nodiscard]] std::string write(const test::TraceSpec& spec) const {
    const auto name = path_ / fmt::format("{}.safetensors", spec.name);
    test::write_trace(name, spec);
    return name.string();
  }

 private:
  std::filesystem::path path_;
};

}  // namespace

// ---- Ada-KV -------------------------------------------------------------------------------------

TEST_CASE("adakv gives places to the head whose candidates win the layer's list",
          "[policy][adakv]") {
  // Seven prompt tokens, window 1: candidates 0 .. 5. Head 0 has one peak (0.96, then 0.0065 each),
  // head 1 is flat (1/7 each). B = 4: b = 3, six places: head 0 wins one, head 1 five.
  const Trace trace = weights({{{5, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}}}, 7);
  const auto run = [&](const char* more, int head) {
    return kept(trace, fmt::format("adakv(budget=4,window=1,kernel=1,{})", more), 0, head);
  };
  CHECK(run("alpha=0", 0) == Tokens{0, 6});
  CHECK(run("alpha=0", 1) == Tokens{0, 1, 2, 3, 4, 6});
  // alpha .2: round(.8 * 1 + 0) = 1 and round(.8 * 5 + 0) = 4.
  CHECK(run("alpha=0.2", 0) == Tokens{0, 6});
  CHECK(run("alpha=0.2", 1) == Tokens{0, 1, 2, 3, 6});
  // alpha .5: floor(1.5) = 1; round(1.5) = 2 and round(3.5) = 4, half to even.
  CHECK(run("alpha=0.5", 0) == Tokens{0, 1, 6});
  CHECK(run("alpha=0.5", 1) == Tokens{0, 1, 2, 3, 6});
  // alpha 1: the uniform base.
  CHECK(run("alpha=1", 0) == Tokens{0, 1, 2, 6});
  CHECK(run("alpha=1", 1) == Tokens{0, 1, 2, 6});
  // A layer that is skipped is shared evenly.
  CHECK(run("alpha=0,skip=1", 0) == Tokens{0, 1, 2, 6});
  CHECK(run("alpha=0,skip=1", 1) == Tokens{0, 1, 2, 6});
}

TEST_CASE("adakv in the form of kvpress keeps the safe ones of each head, then the layer's best",
          "[policy][adakv]") {
  const Trace trace = weights({{{5, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}}}, 7);
  const auto run = [&](const char* alpha, int head) {
    return kept(trace,
                fmt::format("adakv(budget=4,window=1,kernel=1,form=kvpress,alpha={})", alpha), 0,
                head);
  };
  // int(.5 * 4) = 2 safe: the window's token and one candidate; six places less two go to head 1.
  CHECK(run("0.5", 0) == Tokens{0, 6});
  CHECK(run("0.5", 1) == Tokens{0, 1, 2, 3, 4, 6});
  // int(.75 * 4) = 3 safe: two candidates of each head; the last two places go to head 1.
  CHECK(run("0.75", 0) == Tokens{0, 1, 6});
  CHECK(run("0.75", 1) == Tokens{0, 1, 2, 3, 6});
}

TEST_CASE("adakv with normalize weighs a head by the share of its best", "[policy][adakv]") {
  // Head 0 has weights 8, 2.5 (five times) and 1 in the window, sum 21.5: .372, then .116. Head 1:
  // 1/7 = .143. Unweighted, head 1 wins five of six places. The best three hold (8 + 5) / 20.5 =
  // .634 of head 0 and 1/2 of head 1: .074 against .071, and head 0 wins all six.
  const double t = std::log(2.5);
  const Trace trace =
      weights({{{std::log(8.0), t, t, t, t, t, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}}}, 7);
  CHECK(sizes(trace, "adakv(budget=4,window=1,kernel=1,alpha=0)") ==
        std::vector<std::size_t>{2, 6});
  CHECK(sizes(trace, "adakv(budget=4,window=1,kernel=1,alpha=0,normalize=true)") ==
        std::vector<std::size_t>{7, 1});
}

TEST_CASE("adakv's counts sum up to the layer's budget", "[policy][adakv]") {
  const Trace trace = random_trace(70, 60, 8, 4);
  for (const int budget : {5, 12, 33}) {
    for (const int window : {1, 4}) {
      const auto total = [&](const std::string& more, int layer) {
        const auto all = sizes(
            trace, fmt::format("adakv(budget={},window={},kernel=3,{})", budget, window, more));
        return std::accumulate(all.begin() + layer * 4, all.begin() + layer * 4 + 4,
                               std::size_t{0});
      };
      const auto exact = static_cast<std::size_t>(4 * budget);
      for (const int layer : {0, 1}) {
        INFO(budget << " " << window << " " << layer);
        CHECK(total("alpha=0", layer) == exact);
        CHECK(total("alpha=0.2,form=kvpress", layer) == exact);
        CHECK(total("alpha=0.9,form=kvpress", layer) == exact);
        // The floor of the safeguard cuts off less than one, rounding up to a half of each head.
        CHECK(total("alpha=0.3", layer) <= exact + 2);
        CHECK(total("alpha=0.3", layer) >= exact - 6);
      }
    }
  }
}

TEST_CASE("adakv charges four bytes a head, and holds everything when all fits",
          "[policy][adakv]") {
  const Trace trace = random_trace(30, 20, 4, 2);
  CHECK(test::run_one(trace, "adakv(budget=5)", {}).metrics.peak_bytes.overhead == 4 * 2 * 2);
  CHECK(test::run_one(trace, "adakv(budget=5,group=none)", {}).metrics.peak_bytes.overhead ==
        4 * 2 * 4);
  CHECK(sizes(trace, "adakv(budget=20,alpha=0.9)") == std::vector<std::size_t>(4, 20));
  CHECK_FALSE(make_policy("adakv(budget=5)", geometry_of(trace, {})).closed_form);
  // Without a trace the heads share evenly: the sum is that of the replay.
  Geometry g = geometry_of(trace, {});
  g.trace = nullptr;
  const std::string whole = "adakv(budget=9,window=4,form=kvpress)";
  CHECK(predict(make_policy(whole, g), g, {}).entry_rows ==
        test::run_one(trace, whole, {}).metrics.entry_rows);
  CHECK_THAT(make_policy(whole, g).notes.front(), Contains("evenly here"));
}

TEST_CASE("adakv shapes the scores of other policies, alone and in chunks", "[policy][adakv]") {
  const Trace trace = random_trace(70, 60, 4, 2);
  EngineOptions chunks;
  chunks.chunk = 20;
  const auto deaths = [&](const std::string& policy, const EngineOptions& options) {
    return test::run_one(trace, policy, options).ledger.death;
  };
  const std::string votes = "budget=30%,window=4,kernel=3";
  CHECK(deaths(fmt::format("adakv({})", votes), {}) ==
        deaths(fmt::format("adakv(window=4)+snapkv({})", votes), {}));
  CHECK(deaths(fmt::format("chunked(adakv({}))", votes), chunks) ==
        deaths(fmt::format("chunked(adakv+snapkv({}))", votes), chunks));
  // Per chunk of 20: 6 + 4 entries a head, 20 in the layer, so 12 candidates of two heads.
  const RunResult run =
      test::run_one(trace, "chunked(adakv(alpha=0,budget=30%,window=4,kernel=3))", chunks);
  for (int l = 0; l < 2; ++l) {
    std::size_t alive = 0;
    for (int h = 0; h < 2; ++h) {
      for (const int t : kept(run, l, h)) alive += t < 20 ? 1 : 0;
    }
    CHECK(alive == 20);
  }
  CHECK_NOTHROW(deaths("chunked(adakv(budget=10%))", chunks));
  CHECK_NOTHROW(deaths("chunked(adakv+snapkv(budget=10%))", chunks));
  CHECK_NOTHROW(deaths("adakv+h2o(budget=12)", {}));
}

TEST_CASE("adakv refuses what leaves it no choice between heads", "[policy][adakv]") {
  const Geometry g = geometry(2, 4, 2, 40);
  CHECK_THROWS_WITH(make_policy("adakv+tova(budget=10)", g),
                    Contains("tova ranks one set for all heads of a layer"));
  CHECK_THROWS_WITH(make_policy("adakv+pyramidkv(budget=10)", g),
                    Contains("both bring their own budget shape"));
  CHECK_THROWS_WITH(make_policy("adakv+chunkkv(budget=10)", g),
                    Contains("both bring their own budget shape"));
  CHECK_THROWS_WITH(make_policy("adakv(alpha=1.5)", g), Contains("expected 0 to 1"));
  CHECK_THROWS_WITH(make_policy("adakv(kernel=4)", g), Contains("nearest: 5"));
}

// ---- PyramidKV ----------------------------------------------------------------------------------

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

// ---- HeadKV -------------------------------------------------------------------------------------

TEST_CASE("headkv spreads one pool over all heads of all layers", "[policy][headkv]") {
  // B = 6, window 2: b = 4; beta 2: half of it, 2 a head, is pooled. Scores 3, 1, 0, 0 take 3, 1,
  // 0, 0 times 2 of the pool: 6 + 2, 2 + 2, 0 + 2, 0 + 2, each plus the window; 24 = 4 * 6.
  const Folder folder;
  const std::string file = folder.write("[[3, 1], [0, 0]]");
  const Trace trace = random_trace(40, 30, 4, 2);
  const auto text = [&](const std::string& more) {
    return fmt::format("headkv(budget=6,window=2,kernel=1,beta=2,heads=\"{}\"{})", file, more);
  };
  CHECK(sizes(trace, text("")) == std::vector<std::size_t>{10, 6, 4, 4});
  CHECK(sizes(trace, text(",temp=0")) == std::vector<std::size_t>(4, 6));
  // A larger beta shares less: floor(4 / 4) = 1 a head.
  const std::string less =
      fmt::format("headkv(budget=6,window=2,kernel=1,beta=4,heads=\"{}\")", file);
  CHECK(sizes(trace, less) == std::vector<std::size_t>{8, 6, 5, 5});
  // Equal budgets are SnapKV.
  CHECK(test::run_one(trace, text(",temp=0"), {}).ledger.death ==
        test::run_one(trace, "snapkv(budget=6,window=2,kernel=1)", {}).ledger.death);
  CHECK(test::run_one(trace, text(""), {}).metrics.peak_bytes.overhead == 4 * 2 * 2);
  // Replay and closed form agree without a trace.
  const Geometry g = geometry_of(trace, {});
  Geometry blind = g;
  blind.trace = nullptr;
  CHECK(test::run_one(trace, text(""), {}).metrics.entry_rows ==
        predict(make_policy(text(""), blind), blind, {}).entry_rows);
  CHECK(make_policy(text(""), blind).closed_form);
  CHECK_FALSE(make_policy("headkv", blind).closed_form);
  CHECK_THAT(make_policy("headkv", g).notes.front(), Contains("stand-in"));
}

TEST_CASE("headkv takes scores of query heads, by group or apart", "[policy][headkv]") {
  // Query heads 3 1 | 0 0 in the first layer, 1 1 | 1 1 in the second: means 2, 0, 1, 1.
  const Folder folder;
  const std::string file = folder.write("[[3, 1, 0, 0], [1, 1, 1, 1]]");
  const Trace trace = random_trace(40, 30, 4, 2);
  const auto text = [&](const std::string& group) {
    return fmt::format("headkv(budget=6,window=2,kernel=1,beta=1,group={},heads=\"{}\")", group,
                       file);
  };
  CHECK(sizes(trace, text("mean")) == std::vector<std::size_t>{10, 2, 6, 6});
  CHECK(sizes(trace, text("none")) == std::vector<std::size_t>{14, 6, 2, 2, 6, 6, 6, 6});
  const std::string kv_heads = folder.write("[[3, 1], [0, 0]]");
  CHECK_THROWS_WITH(
      make_policy(fmt::format("headkv(group=none,heads=\"{}\")", kv_heads), geometry(2, 4, 2, 30)),
      Contains("expected 4 query heads"));
  const std::string negative = folder.write("[[3, 1], [0, -1]]");
  CHECK_THROWS_WITH(
      make_policy(fmt::format("headkv(heads=\"{}\")", negative), geometry(2, 4, 2, 30)),
      Contains("expected none below 0"));
  const std::string ragged = folder.write("[[3, 1], [0, 0, 0, 0]]");
  CHECK_THROWS_WITH(make_policy(fmt::format("headkv(heads=\"{}\")", ragged), geometry(2, 4, 2, 30)),
                    Contains("alike in every layer"));
}

TEST_CASE("headkv's budgets sum up to the uniform ones, up to rounding", "[policy][headkv]") {
  const Folder folder;
  std::string rows;
  for (int l = 0; l < 6; ++l) {
    rows += l == 0 ? "[" : ",";
    for (int h = 0; h < 8; ++h)
      rows += fmt::format("{}{}", h == 0 ? "[" : ",", 1 + std::sin(8 * l + h));
    rows += "]";
  }
  const std::string file = folder.write(rows + "]");
  const Geometry g = geometry(6, 8, 8, 4096);
  for (const char* beta : {"1.005", "1.2", "2", "10"}) {
    const auto all = capacities(
        make_policy(fmt::format("headkv(budget=128,beta={},heads=\"{}\")", beta, file), g), g);
    const TokenCount sum = std::accumulate(all.begin(), all.end(), TokenCount{0});
    CHECK(std::abs(sum - 48 * 128) <= 24);
    CHECK(*std::max_element(all.begin(), all.end()) > 128);
  }
}

// ---- PruLong ------------------------------------------------------------------------------------

TEST_CASE("prulong's rounding gives the authors' counts of full heads", "[policy][prulong]") {
  // int(256 * (1 - sparsity)) for .1 to .9.
  const Folder folder;
  std::string rows;
  for (int l = 0; l < 32; ++l) {
    for (int h = 0; h < 8; ++h)
      rows += fmt::format("{}{}", 9 * std::sin(l * 8 + h), h < 7 ? '\t' : '\n');
  }
  const std::string file = folder.write(rows);
  const Geometry g = geometry(32, 32, 8, 4000);
  const std::vector<int> full = {230, 204, 179, 153, 128, 102, 76, 51, 25};
  for (int i = 0; i < 9; ++i) {
    const Policy policy =
        make_policy(fmt::format("prulong(sparsity=0.{},heads=\"{}\")", i + 1, file), g);
    const auto all = capacities(policy, g);
    CHECK(std::count(all.begin(), all.end(), kAll) == full[static_cast<std::size_t>(i)]);
    CHECK(std::count(all.begin(), all.end(), 128 + 1024) ==
          256 - full[static_cast<std::size_t>(i)]);
    CHECK(policy.charge.once == 32);  // 256 bits
  }
}

TEST_CASE("prulong makes the highest gates full, the lower of equal ones", "[policy][prulong]") {
  const Folder folder;
  const Trace trace = random_trace(12, 8, 2, 2);
  const auto text = [&](const std::string& file, const char* sparsity) {
    return fmt::format("prulong(sparsity={},heads=\"{}\",sinks=1,window=2)", sparsity, file);
  };
  // int(4 * .5) = 2 full, int(4 * .3) = 1; streaming heads keep token 0 and the newest two.
  const std::string gates = folder.write("[[0.9, 0.1], [0.2, 0.6]]");
  CHECK(sizes(trace, text(gates, "0.5")) == std::vector<std::size_t>{8, 3, 3, 8});
  CHECK(sizes(trace, text(gates, "0.7")) == std::vector<std::size_t>{8, 3, 3, 3});
  CHECK(kept(trace, text(gates, "0.7"), 1, 1) == Tokens{0, 6, 7});
  // Log alpha of the same order give the same heads.
  const std::string alpha = folder.write("[[5, -4], [-3, 0.5]]");
  CHECK(sizes(trace, text(alpha, "0.5")) == std::vector<std::size_t>{8, 3, 3, 8});
  const std::string mask = folder.write("[[0, 1], [1, 1]]");
  CHECK(sizes(trace, text(mask, "0.5")) == std::vector<std::size_t>{3, 8, 8, 3});
  CHECK_THAT(make_policy(text(mask, "0.5"), geometry_of(trace, {})).notes.back(),
             Contains("equal gates at the cut"));
  CHECK(make_policy(text(mask, "0.25"), geometry_of(trace, {})).notes.empty());
  CHECK_THROWS_WITH(make_policy(text(mask, "1.2"), geometry_of(trace, {})),
                    Contains("expected 0 to 1"));
  CHECK_THAT(
      make_policy("prulong(sparsity=0.5,sinks=1,window=2)", geometry_of(trace, {})).notes.front(),
      Contains("not the authors' weights"));
}

TEST_CASE("prulong's knob counts full heads, whatever rounding does", "[policy][prulong]") {
  for (const int layers : {1, 3, 7, 30}) {
    const Geometry g = geometry(layers, 9, 3, 100);
    const Knob knob = *make_policy("prulong", g).knob;
    CHECK(knob.highest == 3 * layers);
    for (TokenCount full = 0; full <= knob.highest; ++full) {
      const auto all =
          capacities(make_policy(fmt::format("prulong(sparsity={})", knob.value(full)), g), g);
      CHECK(std::count(all.begin(), all.end(), kAll) == full);
    }
  }
}

// ---- BaKlaVa ------------------------------------------------------------------------------------

TEST_CASE("baklava fills budgets in proportion to importance, between bounds",
          "[policy][baklava]") {
  const Folder folder;
  const std::string file = folder.write("[[3, 1], [1, 1]]");
  const Trace trace = random_trace(40, 30, 4, 2);
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

TEST_CASE("what is fitted may be fitted on another trace than the replayed one",
          "[policy][duoattention][prulong][headkv][baklava]") {
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
  CHECK(sizes(trace, "baklava(budget=10,power=1)") == std::vector<std::size_t>{8, 12});
  // Nothing is lost outside sinks and windows, so the grid has nothing to gain.
  CHECK(sizes(trace, "baklava(budget=10)") == std::vector<std::size_t>{10, 10});
  // Without values: how little a row reads itself. Head 0 reads only itself.
  spec.layers[0].v.clear();
  const Trace blind = test::make_trace(spec);
  CHECK(sizes(blind, "baklava(budget=10,power=1)") == std::vector<std::size_t>{8, 12});
  CHECK_THAT(make_policy("baklava", geometry_of(blind, {})).notes.front(),
             Contains("baklava-like stand-in") && Contains("by self mass"));
}

TEST_CASE("baklava's grid lengthens the windows that lose mass", "[policy][baklava]") {
  // Head 0 is flat and loses what lies outside its window; head 1 reads only itself. More power
  // gives head 0 more, until head 1 is at the least.
  const std::vector<double> flat(44, 0.0);
  std::vector<double> self(44);
  for (std::size_t t = 0; t < self.size(); ++t) self[t] = 20.0 * static_cast<double>(t);
  const Trace trace = weights({{flat, self}}, 40);
  CHECK(sizes(trace, "baklava(budget=12)") == std::vector<std::size_t>{16, 8});
}

TEST_CASE("baklava's budgets always sum up to the uniform ones", "[policy][baklava]") {
  const Trace trace = random_trace(60, 50, 6, 3, 3);
  const Geometry g = geometry_of(trace, {});
  for (const int budget : {1, 5, 9, 20, 49}) {
    for (const char* power : {"auto", "0.5", "4"}) {
      const auto all =
          capacities(make_policy(fmt::format("baklava(budget={},power={})", budget, power), g), g);
      CHECK(std::accumulate(all.begin(), all.end(), TokenCount{0}) == 9 * budget);
    }
  }
}

// ---- ChunkKV ------------------------------------------------------------------------------------

TEST_CASE("chunkkv keeps the chunks with the largest sums, and the window on top",
          "[policy][chunkkv]") {
  // Window: token 8. Chunks of two: 20.1 + 1, 7.4 + 7.4, 1 + 1, 1 + 18.2. B = 4: two chunks.
  const Trace trace = weights({{{3, 0, 2, 2, 0, 0, 0, 2.9, 0, 0}}}, 9);
  CHECK(kept(trace, "chunkkv(budget=4,length=2,window=1)") == Tokens{0, 1, 6, 7, 8});
  CHECK(kept(trace, "chunkkv(budget=5,length=2,window=1)") == Tokens{0, 1, 6, 7, 8});
  CHECK(kept(trace, "chunkkv(budget=1,length=2,window=1)") == Tokens{8});
  CHECK(kept(trace, "chunkkv(budget=9,length=2,window=1)").size() == 9);
  // Equal chunks: the lower ones stay.
  const Trace equal = weights({{std::vector<double>(10, 0.0)}}, 9);
  CHECK(kept(equal, "chunkkv(budget=4,length=2,window=1)") == Tokens{0, 1, 2, 3, 8});
  // The last chunk is short: if it stays, less is held than in whole chunks.
  const Trace ragged = weights({{{3, 0, 2, 2, 0, 0, 0, 0, 4, 0, 0}}}, 10);
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
  const Trace one = random_trace(50, 40, 4, 1);
  for (const int budget : {1, 6, 20}) {
    CHECK(test::run_one(one, fmt::format("chunkkv(budget={},length=1,window=3)", budget), {})
              .ledger.death ==
          test::run_one(
              one, fmt::format("snapkv(budget={},window=3,kernel=1,group=sum)", budget + 3), {})
              .ledger.death);
  }
  const RunResult many =
      test::run_one(random_trace(50, 40, 4, 2), "chunkkv(budget=12,length=3,window=3)", {});
  for (int l = 0; l < 2; ++l) CHECK(kept(many, l, 0) == kept(many, l, 1));
}

TEST_CASE("chunkkv as kvpress does it counts chunks, and its window wins", "[policy][chunkkv]") {
  // Window 2 of 8: tokens 6 and 7 score above all. Pooled over five, the peak at 0 lifts tokens 0,
  // 1, 2: chunk {0, 1} has it twice. int(4 * .5) = 2 chunks.
  const Trace trace = weights({{{3, 0, 0, 0, 0, 0, 0, 0, 0}}}, 8);
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
  const Trace trace = random_trace(50, 40, 4, 2, 4);
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

TEST_CASE("chunkkv runs chunk by chunk", "[policy][chunkkv]") {
  const Trace trace = random_trace(50, 40, 4, 2);
  EngineOptions chunks;
  chunks.chunk = 20;
  // A chunk of 20: 10 + 2 entries, six chunks of two, and its window of two.
  CHECK(sizes(trace, "chunked(chunkkv(budget=50%,length=2,window=2))", chunks) ==
        std::vector<std::size_t>(4, 28));
  CHECK_THROWS_WITH(
      make_policy("chunked(chunkkv(preset=kvpress),variant=patched)", geometry_of(trace, chunks)),
      Contains("needs a policy with an observation window"));
}

// ---- DBudgetKV ----------------------------------------------------------------------------------

TEST_CASE("dbudgetkv keeps sinks and the shortest window that holds the norm",
          "[policy][dbudgetkv]") {
  // The last row: 100 at the sink, then 3, .001, 4. Without the sink the norm is 5, of the newest
  // alone 4: a fifth is lost. With it, 100 of 100.12; 100.08 with the newest.
  const auto logs = [](std::vector<double> row) {
    for (double& x : row) x = std::log(x);
    return row;
  };
  const Trace trace = weights({{logs({100, 3, 0.001, 4, 1})}}, 4);
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
  const Trace two = weights({{logs({93, 3, 1e-4, 4, 1}), logs({99, 1e-4, 1e-4, 1, 1})}}, 4);
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
  const Trace trace = random_trace(60, 50, 4, 2, 4);
  const auto all = sizes(trace, "dbudgetkv(threshold=0.3)");
  CHECK(std::vector<std::size_t>(all.begin(), all.begin() + 4) == std::vector<std::size_t>(4, 50));
  for (std::size_t i = 4; i < 8; ++i) CHECK(all[i] < 50);
  CHECK(sizes(trace, "dbudgetkv(threshold=0.3,skip=0)")[0] < 50);
  CHECK_FALSE(make_policy("dbudgetkv", geometry_of(trace, {})).closed_form);
  CHECK_THAT(make_policy("dbudgetkv", geometry(4, 4, 2, 50)).notes.front(),
             Contains("at most everything"));
}

TEST_CASE("dbudgetkv's window never grows with the threshold", "[policy][dbudgetkv]") {
  const Trace trace = random_trace(60, 50, 4, 2, 1, 17);
  for (const char* norm : {"code", "paper"}) {
    for (const int rows : {1, 5}) {
      std::size_t last = 50;
      for (const char* threshold : {"0", "0.001", "0.01", "0.05", "0.2", "0.5", "0.9", "1"}) {
        INFO(norm << " " << rows << " " << threshold);
        const auto all = sizes(trace, fmt::format("dbudgetkv(skip=0,norm={},rows={},threshold={})",
                                                  norm, rows, threshold));
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
