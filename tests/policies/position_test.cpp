// SPDX-License-Identifier: Apache-2.0
// Policies that go by position or by the kind of a head: worked examples, small enough to check by
// hand.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/groups.h"
#include "sim/policy/registry.h"
#include "tests/support/cases.h"
#include "tests/support/files.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::capacities;
using test::chunk;
using test::deaths;
using test::Folder;
using test::geometry;
using test::kept;
using test::kept_sizes;
using test::random_heads;
using test::weights;

namespace {

using Rows = std::vector<int>;
using Tokens = std::vector<int>;

}  // namespace

// ---- full ---------------------------------------------------------------------------------------

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

// ---- streaming_llm ------------------------------------------------------------------------------

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

// ---- lambda -------------------------------------------------------------------------------------

TEST_CASE("lambda keeps sinks and the newest tokens within its budget", "[policy][lambda]") {
  const Trace trace = weights(std::vector<double>(8, 0.0), 5);
  CHECK(deaths(trace, "lambda(budget=3,sinks=1)") == Rows{8, 5, 5, 6, 7, 8, 8, 8});
  CHECK(deaths(trace, "lambda(budget=3)") == Rows{8, 8, 8, 5, 5, 6, 7, 8});  // sinks only
  for (int budget = 1; budget < 9; ++budget) {
    CHECK(deaths(trace, fmt::format("lambda(budget={})", budget)) ==
          deaths(trace, fmt::format("streaming_llm(budget={})", budget)));
  }
}

// ---- prulong ------------------------------------------------------------------------------------

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

TEST_CASE("prulong's evaluation cuts the mask file at a quantile again", "[policy][prulong]") {
  // Of 256 heads: the authors' file has int(256 (1 - s)) full ones, numpy's quantile of it 256 -
  // ceil(255 s).
  const Geometry g = geometry(32, 32, 8, 64);
  const auto full = [&](const std::string& more) {
    const auto all = capacities(make_policy("prulong(" + more + ")", g), g);
    return std::count(all.begin(), all.end(), kAll);
  };
  CHECK(full("sparsity=0.7") == 76);
  CHECK(full("sparsity=0.7,full=quantile") == 77);
  CHECK(full("sparsity=0.2") == 204);
  CHECK(full("sparsity=0.2,full=quantile") == 205);
  CHECK(full("sparsity=0.3,full=quantile") == 179);
  CHECK(full("sparsity=1,full=quantile") == 1);
  const Knob knob = *make_policy("prulong(full=quantile)", g).knob;
  for (TokenCount heads = knob.lowest; heads <= knob.highest; ++heads)
    CHECK(full("full=quantile,sparsity=" + knob.value(heads)) == heads);
}

TEST_CASE("prulong makes the highest gates full, the lower of equal ones", "[policy][prulong]") {
  const Folder folder;
  const Trace trace = random_heads(12, 8, 2, 2);
  const auto text = [&](const std::string& file, const char* sparsity) {
    return fmt::format("prulong(sparsity={},heads=\"{}\",sinks=1,window=2)", sparsity, file);
  };
  // int(4 * .5) = 2 full, int(4 * .3) = 1; streaming heads keep token 0 and the newest two.
  const std::string gates = folder.write("[[0.9, 0.1], [0.2, 0.6]]");
  CHECK(kept_sizes(trace, text(gates, "0.5")) == std::vector<std::size_t>{8, 3, 3, 8});
  CHECK(kept_sizes(trace, text(gates, "0.7")) == std::vector<std::size_t>{8, 3, 3, 3});
  CHECK(kept(trace, text(gates, "0.7"), 1, 1) == Tokens{0, 6, 7});
  // Log alpha of the same order give the same heads.
  const std::string alpha = folder.write("[[5, -4], [-3, 0.5]]");
  CHECK(kept_sizes(trace, text(alpha, "0.5")) == std::vector<std::size_t>{8, 3, 3, 8});
  const std::string mask = folder.write("[[0, 1], [1, 1]]");
  CHECK(kept_sizes(trace, text(mask, "0.5")) == std::vector<std::size_t>{3, 8, 8, 3});
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

// ---- duoattention -------------------------------------------------------------------------------

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
  // 256 gates: .1 230; .2 205; .3 179; .4 154; .5 128; .6 103; .7 77; .8 52; .9 26 (numpy's
  // quantile).
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
  g.tokens = g.prompt = g.evict_point = 100;
  const std::vector<int> full = {230, 205, 179, 154, 128, 103, 77, 52, 26};
  for (int i = 0; i < 9; ++i) {
    const Policy policy =
        make_policy(fmt::format("duoattention(heads=\"{}\",sparsity=0.{})", tsv, i + 1), g);
    int kept = 0;
    for (int l = 0; l < 32; ++l) {
      for (int h = 0; h < 8; ++h)
        kept += policy.rules[0].budget->capacity(g.shape(l, false), h, Sizing{}) == kAll ? 1 : 0;
    }
    CHECK(kept == full[static_cast<std::size_t>(i)]);
  }
  std::filesystem::remove_all(folder);
}
