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
  // Window 2, prompt 5: at the prompt's end 0..2 are outside; the rows 5, 6 push out 3 and 4.
  const Trace trace = weights({0, 0, 0, 0, 0, 0, 0, 0}, 5);
  const Table file("gates", {1, 1, 8}, {.9, .05, .1, .05, .5, 0, 0, 0});
  const std::string spec = fmt::format("write_gate(gate=file,window=2,weights=\"{}\"", file.name());
  CHECK(deaths(trace, spec + ")") == std::vector<int>{8, 5, 5, 6, 8, 8, 8, 8});
  CHECK(deaths(trace, spec + ",tau=0.04)") == std::vector<int>(8, 8));
  // Row 7 has pushed nothing out: a row attends before the entry behind its window leaves.
  CHECK(deaths(trace, spec + ",tau=0.6)") == std::vector<int>{8, 5, 5, 6, 7, 8, 8, 8});
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
          for (std::size_t t = 50; t < 60; ++t) CHECK(d[t] > 60);
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
