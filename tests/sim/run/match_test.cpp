// SPDX-License-Identifier: Apache-2.0
#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/run/run.h"
#include "tests/support/trace_builder.h"

using namespace kvspan;
using Catch::Matchers::Contains;

TEST_CASE("matching tunes every budget to the same footprint", "[match]") {
  const Trace trace = test::make_trace(test::random_spec({.layers = 3,
                                                          .tokens = 210,
                                                          .prompt_tokens = 150,
                                                          .query_heads = 6,
                                                          .kv_heads = 2,
                                                          .head_dim = 8,
                                                          .seed = 3,
                                                          .dtype = Dtype::f16}));
  std::vector<RecipeSpec> specs;
  for (const char* text : {"snapkv(window=8)", "tova", "h2o", "random", "streaming_llm",
                           "pyramidkv", "duoattention(sinks=2,window=8)"}) {
    specs.push_back(parse_spec(text));
  }
  const MatchTarget target = parse_match("footprint=0.7");
  for (const RunResult& run : run_matched(trace, specs, target, {}, {})) {
    INFO(run.spec);
    REQUIRE(run.match.has_value());
    CHECK(run.match->reachable);
    CHECK(run.metrics.footprint <= 0.7);
    CHECK(run.match->reached == run.metrics.footprint);
  }
  // The next larger budget is beyond the target.
  const RunResult tuned = run_matched(trace, {parse_spec("tova")}, target, {}, {})[0];
  const auto from = tuned.spec.find("budget=") + 7;
  const int budget = std::stoi(tuned.spec.substr(from));
  const RecipeSpec next = parse_spec(fmt::format("tova(budget={})", budget + 1));
  CHECK(run_policies(trace, {next}, {}, {})[0].metrics.footprint > 0.7);
  const RunResult mass =
      run_matched(trace, {parse_spec("tova")}, parse_match("mass=0.5"), {}, {})[0];
  CHECK(mass.fidelity->decode->mass_mean >= 0.5);
  const RunResult out =
      run_matched(trace, {parse_spec("tova")}, parse_match("footprint=0.001"), {}, {})[0];
  CHECK_FALSE(out.match->reachable);
  CHECK(out.match->lowest > 0.001);
  CHECK_THROWS_WITH(run_matched(trace, {parse_spec("full")}, target, {}, {}),
                    Contains("no parameter to tune"));
}
