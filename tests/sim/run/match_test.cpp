// SPDX-License-Identifier: Apache-2.0
#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/report/listing.h"
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
  CHECK_THROWS_WITH(run_matched(trace, {parse_spec("h2o(variant=ratio)")}, target, {}, {}),
                    Contains("no parameter to tune"));
}

namespace {

Trace matched_trace() {
  return test::make_trace(test::random_spec({.layers = 2,
                                             .tokens = 120,
                                             .prompt_tokens = 100,
                                             .query_heads = 4,
                                             .kv_heads = 2,
                                             .head_dim = 8,
                                             .seed = 5}));
}

RunResult matched(const Trace& trace, const char* spec, const char* target,
                  const EngineOptions& options = {}) {
  return run_matched(trace, {parse_spec(spec)}, parse_match(target), options, {})[0];
}

}  // namespace

TEST_CASE("a target that is missed says so", "[match]") {
  // infinigen holds nothing on the device whatever its cap, and was called reachable at 75 %.
  const Trace trace = matched_trace();
  EngineOptions options;
  options.prompt = 20;
  const RunResult far = matched(trace, "infinigen", "footprint=0.75", options);
  CHECK(far.match->highest < 0.5);
  CHECK_FALSE(far.match->reachable);
  CHECK_FALSE(far.match->met);
  // Every setting retains everything: more than was wanted is a miss, too.
  const RunResult above = matched(trace, "kivi(group=8)", "retained=0.5");
  CHECK(above.match->reached == 1.0);
  CHECK_FALSE(above.match->reachable);
  CHECK_FALSE(above.match->met);
  // One token more or less is less than a point here.
  const RunResult near = matched(trace, "tova", "footprint=0.9");
  CHECK(near.match->reachable);
  CHECK(near.match->met);
  REQUIRE(near.match->next);
  CHECK(*near.match->next > 0.9);
  // Two tokens of a prompt of two: a step is larger than a point.
  const Trace tiny = test::make_trace(test::random_spec(
      {.layers = 1, .tokens = 6, .prompt_tokens = 4, .query_heads = 1, .head_dim = 4, .seed = 2}));
  // tova holds 1 + 2 + 3 + 4 + (b + 1) + (b + 1) entries of 21: b = 2 gives 16, b = 3 gives 18.
  const RunResult coarse = matched(tiny, "tova", "footprint=0.8");
  CHECK(coarse.match->reached == Approx(16.0 / 21));
  CHECK(*coarse.match->next == Approx(18.0 / 21));
  CHECK(coarse.match->reachable);
  CHECK_FALSE(coarse.match->met);
}

TEST_CASE("matching keeps what the user gave, or refuses it", "[match]") {
  const Trace trace = matched_trace();
  const auto refused = [&](const char* spec, const char* why) {
    CHECK_THROWS_WITH(matched(trace, spec, "footprint=0.5"), Contains(why));
  };
  // These became budget=511 and sinks=auto.
  refused("h2o(heavy=64,recent=64)", "gives heavy=64,recent=64 in its place");
  refused("streaming_llm(sinks=64)", "gives sinks=64 in its place");
  refused("duoattention(sparsity=0.5)", "gives sparsity=0.5 in its place");
  CHECK(matched(trace, "snapkv(window=4,budget=64)", "footprint=0.95").spec.find("window=4,") !=
        std::string::npos);
}

TEST_CASE("the full cache runs along with matched policies", "[match]") {
  const Trace trace = matched_trace();
  const std::vector<RecipeSpec> specs = {parse_spec("tova"), parse_spec("full"), parse_spec("h2o")};
  const auto runs = run_matched(trace, specs, parse_match("footprint=0.9"), {}, {});
  REQUIRE(runs.size() == 3);
  CHECK(runs[0].match);
  CHECK(runs[1].spec.starts_with("full"));
  CHECK_FALSE(runs[1].match);
  CHECK(runs[1].metrics.footprint == 1.0);
  CHECK(runs[2].spec.starts_with("h2o"));
  CHECK(runs[2].match);
  CHECK_THROWS_WITH(run_matched(trace, {parse_spec("full")}, parse_match("footprint=0.9"), {}, {}),
                    Contains("nothing") || Contains("no parameter"));
  RunRequest request;
  request.skips = true;
  request.match = parse_match("footprint=0.9");
  request.specs = {parse_spec("full"), parse_spec("h2o(variant=ratio)"), parse_spec("tova")};
  CHECK(run(trace, request).runs.size() == 2);
}

TEST_CASE("under chunked() matching turns the kind of budget that was given", "[match]") {
  const Trace trace = matched_trace();
  EngineOptions options;
  options.chunk = 20;
  const auto budget = [&](const char* spec) {
    const std::string text = matched(trace, spec, "footprint=0.5", options).spec;
    const auto from = text.find("budget=") + 7;
    return text.substr(from, text.find_first_of(",)", from) - from);
  };
  CHECK(budget("chunked(snapkv(window=4,budget=10%))").ends_with("%"));
  CHECK(budget("chunked(snapkv(window=4))").ends_with("%"));  // its default is a share
  CHECK_FALSE(budget("chunked(snapkv(window=4,budget=64))").ends_with("%"));
  CHECK_FALSE(budget("snapkv(window=4,budget=10%)").ends_with("%"));  // the same thing there
  // The largest share that fits: 0.01 % more is beyond the target, or changes nothing.
  const RunResult tuned =
      matched(trace, "chunked(snapkv(window=4,budget=10%))", "footprint=0.5", options);
  CHECK(tuned.metrics.footprint <= 0.5);
  CHECK(chunked_amount(tuned.spec) ==
        budget("chunked(snapkv(window=4,budget=10%))") + " of each chunk");
  const double share = std::stod(budget("chunked(snapkv(window=4,budget=10%))"));
  const RecipeSpec next =
      parse_spec(fmt::format("chunked(snapkv(window=4,budget={:.2f}%))", share + 0.01));
  CHECK(run_policies(trace, {next}, options, {})[0].metrics.footprint > 0.5);
  const auto amount = [&](const char* spec) {
    return chunked_amount(make_policy(spec, geometry_of(trace, options)).spec);
  };
  CHECK(amount("chunked(snapkv(window=4,budget=64))") == "64 in all");
  CHECK(amount("chunked(snapkv(window=4))") == "20% of each chunk");
  CHECK(amount("adakv(chunked(snapkv(window=4,budget=10%)))") == "10% of each chunk");
  CHECK(amount("chunked(h2o(budget=10%))") == "10% of all chunks so far");
  CHECK(amount("chunked(h2o(heavy=4,recent=4))").empty());
  CHECK(amount("snapkv(budget=10%)").empty());
}
