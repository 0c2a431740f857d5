// SPDX-License-Identifier: Apache-2.0
// One worked example per policy, small enough to check by hand.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "tests/support/cases.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::deaths;
using test::weights;

namespace {

EngineOptions chunk(RowIndex c) {
  EngineOptions options;
  options.chunk = c;
  return options;
}

}  // namespace

TEST_CASE("full keeps every entry", "[policy][full]") {
  const Trace trace = weights({0, 0, 0, 0, 0}, 3);
  CHECK(deaths(trace, "full") == std::vector<int>{5, 5, 5, 5, 5});
}

TEST_CASE("full with model_window=evict drops what the model itself cannot read again",
          "[policy][full]") {
  test::TraceSpec spec = test::random_spec({.layers = 1, .tokens = 7, .prompt_tokens = 4});
  spec.meta.sliding_window = {3};  // row i reads i - 2 .. i
  const Trace trace = test::make_trace(spec);
  CHECK(deaths(trace, "full(model_window=evict)") == std::vector<int>{4, 4, 5, 6, 7, 7, 7});
  CHECK(test::run_one(trace, "full(model_window=evict)", {}).fidelity->all->mass_min == 1.0);
  CHECK(deaths(trace, "full") == std::vector<int>{7, 7, 7, 7, 7, 7, 7});
}

TEST_CASE("streaming_llm keeps sinks and the newest tokens after every pass",
          "[policy][streaming_llm]") {
  // chunks [0,4) [4,8), then rows 8, 9, 10: the paper's vector n=8, m=3, C=4, S=1, W=2, A = 44.
  const Trace trace = weights(std::vector<double>(11, 0.0), 8);
  const RunResult run = test::run_one(trace, "streaming_llm(sinks=1,window=2)", chunk(4));
  const auto d = run.ledger.deaths(0, 0);
  CHECK(std::vector<int>(d.begin(), d.end()) ==
        std::vector<int>{11, 4, 8, 8, 8, 8, 9, 10, 11, 11, 11});
  CHECK(run.metrics.entry_rows == 44);
  CHECK(run.metrics.full_entry_rows == 66);
}

TEST_CASE("a sliding window of four over eight tokens is the paper's 26 of 36",
          "[policy][streaming_llm]") {
  const Trace trace = weights(std::vector<double>(8, 0.0), 1);
  const RunResult run = test::run_one(trace, "streaming_llm(sinks=0,window=3)", {});
  CHECK(run.metrics.entry_rows == 26);
  CHECK(run.metrics.full_entry_rows == 36);
  CHECK(fmt::format("{:.1f} %", 100 * run.metrics.footprint) == "72.2 %");
}

TEST_CASE("random evicts the smallest ranks, so budgets nest", "[policy][random]") {
  const Trace trace = weights(std::vector<double>(40, 0.0), 30);
  for (int budget = 1; budget < 30; ++budget) {
    const auto small = deaths(trace, fmt::format("random(budget={},seed=7)", budget));
    const auto large = deaths(trace, fmt::format("random(budget={},seed=7)", budget + 1));
    for (std::size_t t = 0; t < small.size(); ++t) CHECK(small[t] <= large[t]);
  }
  CHECK(deaths(trace, "random(budget=5,seed=7)") != deaths(trace, "random(budget=5,seed=8)"));
}

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

TEST_CASE("ties go to the lower token index", "[policy][ties]") {
  const Trace trace = weights(std::vector<double>(8, 0.0), 6);
  CHECK(deaths(trace, "tova(budget=3)") == std::vector<int>{8, 8, 8, 6, 6, 6, 7, 8});
  CHECK(deaths(trace, "snapkv(budget=3,window=1,kernel=1)") ==
        std::vector<int>{8, 8, 6, 6, 6, 8, 8, 8});
}

TEST_CASE("snapkv keeps the voted candidates and its window, once, after the prompt",
          "[policy][snapkv]") {
  //  keys      0  1  2  3  4 | 5 6 (window) | 7 8 generated
  const Trace trace = weights({0, 3, 1, 2, 0, 0, 0, 9, 9}, 7);
  CHECK(deaths(trace, "snapkv(budget=4,window=2,kernel=1)") ==
        std::vector<int>{7, 9, 7, 9, 7, 9, 9, 9, 9});
  // Max pooling of 3 lifts both neighbours of key 1 to its level: 0, 1, 2 tie, lower indices stay.
  CHECK(deaths(trace, "snapkv(budget=4,window=2,kernel=3)") ==
        std::vector<int>{9, 9, 7, 7, 7, 9, 9, 9, 9});
  // A budget within the window keeps the newest `budget` entries; one that holds everything is idle.
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
  g.prompt = g.evict_at = 32768;
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

TEST_CASE("duoattention streams the heads whose gate is low", "[policy][duoattention]") {
  const auto folder =
      std::filesystem::temp_directory_path() / fmt::format("kvspan_duo_{}", std::random_device{}());
  std::filesystem::create_directories(folder);
  const std::string json = (folder / "gates.json").string();
  std::ofstream(json) << "[[0.9, 0.1], [0.2, 0.6]]";
  const Trace trace = test::make_trace(test::random_spec(
      {.layers = 2, .tokens = 12, .prompt_tokens = 8, .query_heads = 2, .kv_heads = 2}));
  const std::string policy = fmt::format("duoattention(heads=\"{}\",sinks=1,window=2)", json);
  CHECK(deaths(trace, policy, {}, 0, 0) == std::vector<int>(12, 12));
  CHECK(deaths(trace, policy, {}, 0, 1) ==
        std::vector<int>{12, 8, 8, 8, 8, 8, 9, 10, 11, 12, 12, 12});
  CHECK(deaths(trace, policy, {}, 1, 0) != std::vector<int>(12, 12));
  CHECK(deaths(trace, policy, {}, 1, 1) == std::vector<int>(12, 12));
  // With sparsity the gates are cut at their quantile: 3 of 4 stream only above the 2/3 quantile.
  const std::string cut =
      fmt::format("duoattention(heads=\"{}\",sparsity=0.7,sinks=1,window=2)", json);
  CHECK(deaths(trace, cut, {}, 0, 0) == std::vector<int>(12, 12));
  CHECK(deaths(trace, cut, {}, 1, 1) != std::vector<int>(12, 12));
  CHECK(test::run_one(trace, policy, {}).metrics.peak_bytes.overhead == 1);  // 4 gates, one byte
  std::ofstream(json) << "[[0.9, 0.1, 3]]";
  CHECK_THROWS_WITH(deaths(trace, policy), Contains("expected 2 KV heads"));
  std::ofstream(json) << "[[0.9, 0.1]]";
  CHECK_THROWS_WITH(deaths(trace, policy), Contains("expected 2 (stored) or 2 (model)"));
  std::ofstream(json) << "{\"a\": 1}";
  CHECK_THROWS_AS(deaths(trace, policy), TraceError);
  std::filesystem::remove_all(folder);
}

TEST_CASE("the quantile of DuoAttention's gates gives the authors' counts of full heads",
          "[policy][duoattention]") {
  // 256 gates: .1 230; .2 205; .3 179; .4 154; .5 128; .6 103; .7 77; .8 52; .9 26 (numpy's quantile).
  const auto folder = std::filesystem::temp_directory_path() /
                      fmt::format("kvspan_quantile_{}", std::random_device{}());
  std::filesystem::create_directories(folder);
  const std::string tsv = (folder / "gates.tsv").string();
  {
    std::ofstream file(tsv);
    for (int l = 0; l < 32; ++l) {
      for (int h = 0; h < 8; ++h) file << std::sin(l * 8 + h) << (h < 7 ? '\t' : '\n');
    }
  }
  Geometry g;
  g.model_layers = 32;
  for (int l = 0; l < 32; ++l) g.layer_ids.push_back(l);
  g.query_heads = g.kv_heads = 8;
  g.k_dim = g.v_dim = 4;
  g.tokens = g.prompt = g.evict_at = 100;
  const std::vector<int> full = {230, 205, 179, 154, 128, 103, 77, 52, 26};
  for (int i = 0; i < 9; ++i) {
    const Policy policy =
        make_policy(fmt::format("duoattention(heads=\"{}\",sparsity=0.{})", tsv, i + 1), g);
    int kept = 0;
    for (int l = 0; l < 32; ++l) {
      for (int h = 0; h < 8; ++h)
        kept += policy.rules[0].budget->capacity(g.shape(l, false), h, {}) == kAll ? 1 : 0;
    }
    CHECK(kept == full[static_cast<std::size_t>(i)]);
  }
  std::filesystem::remove_all(folder);
}

TEST_CASE("chunked evicts after every chunk, and freezes the survivors", "[policy][chunked]") {
  // Chunks of 4, half of each plus the window of 1: the paper's vector n=8, m=3, C=4, s=.5, w=1: 56.
  const Trace trace = weights({0, 3, 1, 0, 2, 0, 0, 1, 0, 0, 0}, 8);
  const RunResult run =
      test::run_one(trace, "chunked(snapkv(budget=50%,window=1,kernel=1))", chunk(4));
  const auto d = run.ledger.deaths(0, 0);
  //   chunk 0: window 3, votes 1 then 2 | chunk 1: window 7, votes 4, then 5 (tie with 6)
  CHECK(std::vector<int>(d.begin(), d.end()) ==
        std::vector<int>{4, 11, 11, 11, 11, 11, 8, 11, 11, 11, 11});
  CHECK(run.metrics.entry_rows == 56);
  CHECK(test::run_one(trace, "chunked(snapkv(budget=50%,window=1,kernel=1),count=implementation)",
                      chunk(4))
            .metrics.entry_rows == 46);
}

TEST_CASE("chunked counts follow the authors' arithmetic", "[policy][chunked]") {
  const auto kept = [](const std::string& policy, int prompt) {
    const Trace trace =
        weights(std::vector<double>(static_cast<std::size_t>(prompt) + 1, 0.0), prompt);
    std::int64_t alive = 0;
    for (const int d : deaths(trace, policy, chunk(prompt))) alive += d > prompt ? 1 : 0;
    return alive - 1;  // the generated token
  };
  CHECK(kept("chunked(snapkv(budget=10%,window=1,kernel=1),count=implementation)", 1000) ==
        99);                                                                  // int((1-.9)*1000)
  CHECK(kept("chunked(snapkv(budget=10%,window=5,kernel=1))", 1000) == 105);  // round + w
  CHECK(kept("chunked(snapkv(budget=1%,window=4,kernel=1))", 50) ==
        5);  // (1 - .99) * 50 is above .5 in double
  CHECK(kept("chunked(snapkv(budget=3%,window=4,kernel=1))", 50) == 6);  // likewise above 1.5
  CHECK(kept("chunked(snapkv(budget=1%,window=4,kernel=1),count=implementation)", 50) == 0);
  CHECK(kept("chunked(snapkv(budget=1%,window=4,kernel=1),count=implementation,small=window)",
             50) == 4);
  CHECK(kept("chunked(snapkv(budget=100%,window=4,kernel=1))", 50) == 50);
}

TEST_CASE("patched chunks are scored by the prompt's last rows, without a window of their own",
          "[policy][chunked]") {
  // q of the prompt's last row prefers low keys, every other row high ones; no rotary embedding.
  const Trace trace = weights({0, 3, 1, 2, 0, 0, 0, 0, 0}, 8, {1, 1, 1, 1, 1, 1, 1, -1, 1});
  const auto naive = deaths(trace, "chunked(snapkv(budget=25%,window=1,kernel=1))", chunk(4));
  const auto patched =
      deaths(trace, "chunked(snapkv(budget=25%,window=1,kernel=1),variant=patched)", chunk(4));
  CHECK(std::vector<int>(naive.begin(), naive.begin() + 4) ==
        std::vector<int>{4, 9, 4, 9});  // window 3, vote 1
  CHECK(std::vector<int>(patched.begin(), patched.begin() + 4) ==
        std::vector<int>{9, 4, 9, 4});  // 0 and 2, no window
  CHECK_THAT(test::run_one(trace, "chunked(snapkv(budget=25%,window=1,kernel=1),variant=patched)",
                           chunk(4))
                 .notes.back(),
             Contains("stand-in"));
}

TEST_CASE("given scores and deaths are replayed as they are", "[policy][external]") {
  const auto folder = std::filesystem::temp_directory_path() /
                      fmt::format("kvspan_external_{}", std::random_device{}());
  std::filesystem::create_directories(folder);
  const Trace trace = weights({0, 0, 0, 0, 0, 0}, 4);
  const std::string scores = (folder / "scores.safetensors").string();
  test::write_tensors(
      scores, {},
      {{"scores", {Dtype::f32, {1, 1, 6}, test::encode({5, 1, 4, 2, 0, 9}, Dtype::f32)}}});
  CHECK(deaths(trace, fmt::format("scores(file=\"{}\",budget=2)", scores)) ==
        std::vector<int>{6, 4, 6, 4, 6, 6});
  CHECK(deaths(trace, fmt::format("scores(file=\"{}\",budget=2,recent=1)", scores)) ==
        std::vector<int>{6, 4, 4, 6, 6, 6});
  CHECK(deaths(trace, fmt::format("scores(file=\"{}\",budget=2,at=every_pass)", scores)) ==
        std::vector<int>{6, 4, 6, 4, 5, 6});

  const std::string rows = (folder / "deaths.safetensors").string();
  const auto write = [&](std::vector<std::int32_t> values) {
    std::vector<std::byte> bytes(values.size() * 4);
    std::memcpy(bytes.data(), values.data(), bytes.size());
    test::write_tensors(rows, {}, {{"runs.0.death", {Dtype::i32, {1, 1, 6}, bytes}}});
  };
  write({2, 6, 3, 4, 6, 6});  // rows 2 and 3 lie inside the prompt's one pass
  CHECK(deaths(trace, fmt::format("deaths(file=\"{}\")", rows)) ==
        std::vector<int>{2, 6, 3, 4, 6, 6});
  write({2, 1, 3, 4, 6, 6});
  CHECK_THROWS_WITH(deaths(trace, fmt::format("deaths(file=\"{}\")", rows)),
                    Contains("token 1 dies at row 1"));
  CHECK_THROWS_WITH(deaths(trace, fmt::format("scores(file=\"{}\",budget=2)", rows)),
                    Contains("has no tensor 'scores'"));
  CHECK_THROWS_AS(deaths(trace, "scores(file=\"/no/such/file\",budget=2)"), TraceError);
  std::filesystem::remove_all(folder);
}
