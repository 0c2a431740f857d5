// SPDX-License-Identifier: Apache-2.0
#include "sim/run/run.h"

#include <mutex>

#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "sim/report/listing.h"
#include "tests/support/cases.h"

using namespace kvspan;
using Catch::Matchers::Contains;

namespace {

RunRequest request_of(const std::vector<std::string>& policies) {
  RunRequest out;
  out.specs = expand_policies(policies, {"4"});
  return out;
}

std::vector<std::string> labels(const RunReport& report) {
  std::vector<std::string> out;
  for (const RunResult& run : report.runs) out.push_back(run.label);
  return out;
}

}  // namespace

TEST_CASE("a report says what was asked for", "[run]") {
  test::TraceSpec spec = test::random_spec({.tokens = 16, .prompt_tokens = 12});
  spec.name = "a name";
  const Trace trace = test::make_trace(spec);
  RunRequest request = request_of({"full", "snapkv(window=2)"});
  request.engine.prompt = 10;
  request.engine.chunk = 5;
  request.engine.kv_bytes = 4;
  request.layerwise = true;
  request.layout = "paged16_per_head";
  request.command = {"kvspan", "run"};
  request.lifetimes_path = "lives";
  request.checksum = [] { return std::string("sum"); };
  const RunReport report = run(trace, request);
  CHECK(labels(report) == std::vector<std::string>{"full", "snapkv(window=2,budget=4)"});
  CHECK(report.trace_path == "a name");
  CHECK(report.trace_sha256 == "sum");
  CHECK(report.trace.prompt_tokens == 10);
  CHECK(report.chunk == 5);
  CHECK(report.accounting.kv_bytes == 4);
  CHECK(report.accounting.layerwise);
  CHECK(report.accounting.layout == "paged16_per_head");
  CHECK(report.command == request.command);
  CHECK(report.lifetimes_path == "lives");
  CHECK(report.timeline_path.empty());
  CHECK(report.runs[0].metrics.peak_bytes.kv % 4 == 0);
}

TEST_CASE("in batches of 1, 2, 4 the results are those of one replay", "[run]") {
  const Trace trace = test::random_trace(24, 16, 3);
  const RunRequest request = request_of(
      {"full", "tova", "h2o", "snapkv(window=2)", "knorm", "random", "keydiff", "quest"});
  const RunReport whole = run(trace, request);
  std::vector<std::size_t> seen;
  std::vector<std::string> first;
  std::mutex mutex;
  RunWatch watch;
  watch.progress = [&](const RunBatch& batch, double done) {
    const std::lock_guard lock(mutex);
    CHECK(batch.total == 8);
    CHECK(done <= 1 + 1e-9);
  };
  watch.grown = [&](const RunReport& report, const RunBatch& batch) {
    CHECK(report.runs.size() == batch.end);
    seen.push_back(batch.end);
    first.push_back(batch.label);
  };
  const RunReport grown = run(trace, request, watch);
  CHECK(seen == std::vector<std::size_t>{1, 3, 7, 8});
  CHECK(first == std::vector<std::string>{"full", "tova(budget=4)", "snapkv(window=2,budget=4)",
                                          "quest(budget=4)"});
  REQUIRE(grown.runs.size() == whole.runs.size());
  for (std::size_t r = 0; r < whole.runs.size(); ++r) {
    CHECK(grown.runs[r].ledger.death == whole.runs[r].ledger.death);
    CHECK(grown.runs[r].fidelity->all->mass_mean == whole.runs[r].fidelity->all->mass_mean);
  }
}

TEST_CASE("what a trace cannot serve is left out or refused, with a reason", "[run]") {
  // Keys that cannot be rotated: the trace does not say how they were.
  const Trace trace = test::random_trace(24, 16, 3);
  RunRequest request = request_of({"tova", "streaming_llm(positions=cache)", "full"});
  CHECK_THROWS_WITH(run(trace, request), Contains("cannot run on") && Contains("rope_*"));
  CHECK_THROWS_AS(run(trace, request), TraceError);
  request.skips = true;
  RunOutline outline;
  RunWatch watch;
  watch.begins = [&](const RunOutline& of) { outline = of; };
  CHECK(labels(run(trace, request, watch)) == std::vector<std::string>{"tova(budget=4)", "full"});
  CHECK(outline.policies == 2);
  CHECK(outline.unserved == std::vector<std::string>{"streaming_llm(positions=cache,budget=4)"});
  CHECK(outline.untunable.empty());
  CHECK(outline.memory.bytes > 0);

  request.match = parse_match("footprint=0.9");
  const RunReport matched = run(trace, request, watch);
  CHECK(outline.untunable.empty());
  REQUIRE(matched.runs.size() == 2);
  CHECK(matched.runs[0].match->reachable);
  CHECK_FALSE(matched.runs[1].match);  // full, the baseline
}

TEST_CASE("why_not() names the field that is lacking", "[run][requirements]") {
  const Trace trace = test::random_trace(24, 16, 3);
  const Geometry geometry = geometry_of(trace, {});
  const auto reason = [&](const char* spec) {
    const Policy policy = make_policy(spec, geometry);
    return why_not(trace, policy, requirements_of(policy, geometry)).value_or("");
  };
  CHECK(reason("snapkv(budget=4,window=2)").empty());
  CHECK_THAT(reason("streaming_llm(budget=4,positions=cache)"),
             Contains("the rope_* fields") && Contains("keys cannot be rotated"));
}

TEST_CASE("a run can be ended from outside, and asks for its span by name", "[run]") {
  test::TraceSpec spec = test::random_spec({.tokens = 24, .prompt_tokens = 16});
  spec.meta.spans = {{"question", 10, 14}};
  const Trace trace = test::make_trace(spec);
  RunRequest request = request_of({"snapkv(window=2)"});
  request.evict_point = "question";
  CHECK(run(trace, request).runs[0].ledger.plan.evict_point == 10);
  request.evict_point = "12";
  CHECK(run(trace, request).runs[0].ledger.plan.evict_point == 12);
  request.evict_point = "qestion";
  CHECK_THROWS_WITH(run(trace, request), Contains("did you mean 'question'?"));
  request.evict_point.clear();
  RunWatch watch;
  watch.cancelled = [] { return true; };
  CHECK_THROWS_AS(run(trace, request, watch), Interrupted);
}

TEST_CASE("sets per query head and sizes that mean nothing are told", "[run]") {
  // Footprint 74 % stood beside three times the bytes of the full cache, without a word.
  const Trace trace = test::make_trace(
      test::random_spec({.tokens = 40, .prompt_tokens = 30, .query_heads = 6, .kv_heads = 2}));
  RunRequest request;
  const auto notes = [&](const char* policy) {
    request.specs = {parse_spec(policy)};
    const RunReport report = run(trace, request);
    std::string all;
    for (const std::string& note : notes_of(report, report.runs[0])) all += note + "\n";
    return all;
  };
  CHECK_THAT(notes("snapkv(budget=10,window=4,group=none)"),
             Contains("6 query heads, where the full cache has 2 KV heads") &&
                 Contains("bytes are up to 3 times theirs"));
  CHECK(notes("snapkv(budget=10,window=4)").empty());
  CHECK_THAT(notes("snapkv(budget=41,window=4)"), Contains("beyond all 40 tokens"));
  CHECK(notes("snapkv(budget=40,window=4)").empty());
  CHECK_THAT(notes("tova(budget=5000)"), Contains("its size of 5000 entries is beyond all 40"));
  CHECK_THAT(notes("snapkv(budget=10,window=5000)"),
             Contains("its window of 5000 takes the whole budget of 10 entries"));
  CHECK_THAT(notes("snapkv(budget=10,window=10)"), Contains("takes the whole budget"));
  CHECK(notes("snapkv(budget=11,window=10)").empty());
}

TEST_CASE("a policy that is given twice runs once, and the caller hears of it", "[run]") {
  std::vector<std::string> repeated;
  CHECK(expand_policies({"tova", "full", "tova"}, {"10%", "20%"}, &repeated).size() == 3);
  CHECK(repeated == std::vector<std::string>{"tova"});
  repeated.clear();
  // Budgets make one run of a policy that takes none: nobody gave that twice.
  CHECK(expand_policies({"full", "tova"}, {"10%", "20%"}, &repeated).size() == 3);
  CHECK(repeated.empty());
  CHECK(expand_policies({"tova(budget={4,8})", "tova(budget=8)"}, {}, &repeated).size() == 2);
  CHECK(repeated == std::vector<std::string>{"tova(budget=8)"});
}

TEST_CASE("a label says what a budget under chunked() is of", "[run][report]") {
  CHECK(label_with_amount("chunked(snapkv(budget=20%))", "20% of each chunk") ==
        "chunked(snapkv(20% of each chunk))");
  CHECK(label_with_amount("chunked(snapkv(window=8,budget=204),variant=naive)", "204 in all") ==
        "chunked(snapkv(window=8,204 in all),variant=naive)");
  CHECK(label_with_amount("chunked(snapkv)", "20% of each chunk") ==
        "chunked(snapkv): 20% of each chunk");
  CHECK(label_with_amount("snapkv(budget=20%)", "") == "snapkv(budget=20%)");
}
