// SPDX-License-Identifier: Apache-2.0
// Why attention was lost: rows of known probabilities, and the replay's own retained attention.
#include "sim/run/explain.h"

#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "sim/replay/engine.h"
#include "sim/report/lifetimes_writer.h"
#include "sim/run/run.h"
#include "tests/support/trace_builder.h"

using namespace kvspan;

namespace {

// Rows of two query heads of one KV head with these probabilities: key j is the j-th unit vector.
Trace trace_of(const std::vector<std::vector<std::vector<double>>>& heads, RowIndex prompt) {
  test::TraceSpec spec;
  const std::size_t tokens = heads[0].size();
  spec.meta.tokens = static_cast<std::int64_t>(tokens);
  spec.meta.prompt_tokens = prompt;
  spec.meta.query_heads = 2;
  spec.meta.kv_heads = 1;
  spec.meta.head_dim = static_cast<int>(tokens);
  spec.meta.score_scale = 1;
  spec.meta.spans = {{"needle", 3, 4}};
  test::LayerSpec layer;
  for (std::size_t row = 0; row < tokens; ++row) {
    for (const auto& head : heads) {
      for (std::size_t j = 0; j < tokens; ++j)
        layer.q.push_back(j < head[row].size() ? std::log(head[row][j]) : 0.0);
    }
    for (std::size_t j = 0; j < tokens; ++j) layer.k.push_back(j == row ? 1 : 0);
  }
  spec.layers = {layer};
  return test::make_trace(spec);
}

struct Explained {
  Explanation found;
  std::vector<RunResult> runs;
};

Explained explained(const Trace& trace, const std::vector<std::string>& policies,
                    const ExplainOptions& options = {}) {
  std::vector<RecipeSpec> specs;
  for (const std::string& text : policies) specs.push_back(parse_spec(text));
  EngineOptions engine;
  engine.keep_reads = kKeptReadsBytes;
  Explained out;
  out.runs = run_policies(trace, specs, engine, {});
  std::vector<const Ledger*> ledgers;
  for (const RunResult& run : out.runs) ledgers.push_back(&run.ledger);
  out.found = explain(trace, ledgers, options);
  return out;
}

}  // namespace

TEST_CASE("lost attention goes to the first kind that a key is of", "[explain]") {
  // The prompt's six rows: head 0 looks at token 2 most, head 1 at token 0.
  std::vector<std::vector<double>> a{{1}, {.5, .5}, {.1, .1, .8}, {.1, .1, .7, .1}};
  a.push_back({.1, .1, .6, .1, .1});
  a.push_back({.1, .1, .5, .1, .1, .1});
  std::vector<std::vector<double>> b{{1}, {.9, .1}, {.8, .1, .1}, {.7, .1, .1, .1}};
  b.push_back({.6, .1, .1, .1, .1});
  b.push_back({.5, .1, .1, .1, .1, .1});
  // Decode rows 6 and 7.
  a.push_back({.2, .1, .15, .05, .1, .1, .3});
  a.push_back({.1, .05, .25, .1, .15, .1, .1, .15});
  b.emplace_back(7, 1.0 / 7);
  b.emplace_back(8, 1.0 / 8);
  const Trace trace = trace_of({a, b}, 6);

  // Held: 0, 4, 5 after the prompt; 0, 5, 6 after row 6. So row 6 lacks 1, 2, 3 and row 7 lacks
  // 1, 2, 3, 4. Token 1 is a sink, 3 the needle, 2 head 0's heavy hitter, and 4 recent for row 7.
  ExplainOptions options;
  options.sinks = 2;
  options.recent = 4;
  options.hitters = 0.1;  // of six keys: one
  const Explained got = explained(trace, {"streaming_llm(sinks=1,window=2)", "full"}, options);
  const Explanation& found = got.found;
  REQUIRE(found.causes ==
          std::vector<std::string>{"needle", "sink", "recent", "heavy hitter", "rest"});
  CHECK(found.rows == std::vector<RowIndex>{6, 7});
  const LostAttention& run = found.runs[0];
  const auto near = [](double x) { return Approx(x).margin(1e-6); };
  REQUIRE(run.by_head.size() == 1);
  CHECK(run.by_head[0][0][0] == near((.05 + .1) / 2));
  CHECK(run.by_head[0][0][1] == near((.1 + .05) / 2));
  CHECK(run.by_head[0][0][2] == near(.15 / 2));
  CHECK(run.by_head[0][0][3] == near((.15 + .25) / 2));
  CHECK(run.by_head[0][0][4] == near(0));
  CHECK(run.by_head[0][1][0] == near((1.0 / 7 + 1.0 / 8) / 2));
  CHECK(run.by_head[0][1][1] == near((1.0 / 7 + 1.0 / 8) / 2));
  CHECK(run.by_head[0][1][2] == near(1.0 / 16));
  CHECK(run.by_head[0][1][3] == near(0));  // its most attended key, 0, is a sink
  CHECK(run.by_head[0][1][4] == near((1.0 / 7 + 1.0 / 8) / 2));
  CHECK(run.by_cause[3] == near((.15 + .25) / 4));
  // Cells retain 0.7 and 0.45 of head 0, 4/7 and 1/2 of head 1.
  CHECK(run.retained == near((.7 + .45 + 4.0 / 7 + .5) / 4));
  CHECK(run.p5 == near(.45));
  REQUIRE(run.worst.size() == 1);
  CHECK(run.worst[0].row == 7);
  CHECK(run.worst[0].query_head == 0);
  CHECK(run.worst[0].token == 2);
  CHECK(run.worst[0].token_share == near(.25));
  const std::vector<WorstRow> rows = worst_rows(run);
  REQUIRE(rows.size() == 1);
  CHECK(rows[0].row == 7);
  CHECK(rows[0].cells == 1);
  CHECK(rows[0].least == near(.45));

  const LostAttention& full = found.runs[1];
  CHECK(full.retained == near(1));
  CHECK(full.by_cause == std::vector<double>(5, 0.0));
  CHECK(full.worst.empty());
}

TEST_CASE("what is not lost is the replay's retained attention", "[explain]") {
  test::TraceSpec spec = test::random_spec({.layers = 2,
                                            .tokens = 90,
                                            .prompt_tokens = 64,
                                            .query_heads = 2,
                                            .kv_heads = 2,
                                            .head_dim = 8,
                                            .seed = 4});
  spec.meta.spans = {{"needle", 10, 14}, {"question", 60, 64}};
  const Trace trace = test::make_trace(spec);
  const Explained got = explained(
      trace, {"snapkv(budget=20,window=4)", "h2o(budget=16)", "chunked(knorm(budget=30%))",
              "snapkv(budget=20,window=4,group=none)", "quest(budget=16,skip=0)"});
  CHECK(got.found.causes.size() == 6);
  for (std::size_t r = 0; r < got.runs.size(); ++r) {
    INFO(got.runs[r].spec);
    const PhaseFidelity& decode = *got.runs[r].fidelity->decode;
    CHECK(got.found.runs[r].retained == Approx(decode.mass_mean).margin(1e-6));
    CHECK(got.found.runs[r].p5 == Approx(decode.mass_p5).margin(1e-6));
    double lost = 0;
    for (const double part : got.found.runs[r].by_cause) lost += part;
    CHECK(lost == Approx(1 - decode.mass_mean).margin(1e-6));
    CHECK(got.found.runs[r].worst.size() >= 6);  // 5 % of 2 layers, 2 heads, 26 rows
  }
}
