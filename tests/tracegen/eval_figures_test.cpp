// SPDX-License-Identifier: Apache-2.0
// What eval makes of its samples, by hand.
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "tracegen/eval/eval.h"
#include "tracegen/eval/open_loop.h"

using namespace kvspan;
using namespace kvspan::tracegen;
using Catch::Matchers::Contains;

TEST_CASE("ranks correlate as Spearman has it", "[eval]") {
  CHECK(rank_correlation({1, 2, 3}, {10, 30, 20}) == Approx(0.5));
  CHECK(rank_correlation({1, 2, 3}, {9, 8, 1}) == Approx(-1));
  // Ranks 1.5, 1.5, 3 and 1, 2, 3: 1.5 / sqrt(1.5 * 2)
  CHECK(rank_correlation({5, 5, 7}, {1, 2, 3}) == Approx(0.8660254));
  CHECK(rank_correlation({4, 4}, {1, 2}) == 0);
}

// Two samples, `full` at 1 and 1; "a" at footprints 0.2, 0.4 and 0.8.
TEST_CASE("a critical footprint is where the mean score crosses its share", "[eval]") {
  EvalRequest request;
  request.draws = 200;
  TaskResult task;
  const auto add = [&](const std::vector<double>& scores, const std::vector<double>& footprints) {
    SampleResult& sample = task.samples.emplace_back();
    const std::vector<std::string> labels{"full", "a(budget=1)", "a(budget=2)", "a(budget=3)"};
    for (std::size_t r = 0; r < labels.size(); ++r) {
      RunResult run;
      run.label = labels[r];
      run.metrics.footprint = footprints[r];
      run.metrics.peak_kv = 0.5 * footprints[r];
      sample.report.runs.push_back(std::move(run));
      Outcome outcome;
      outcome.score = scores[r];
      outcome.divergence = 1 - scores[r];
      outcome.open = OpenLoop{footprints[r], 1 - footprints[r], std::nullopt, 1};
      sample.outcomes.push_back(outcome);
    }
  };
  SECTION("by interpolation between budgets") {
    add({1, 0.2, 0.7, 1}, {1, 0.1, 0.3, 0.7});
    add({1, 0.4, 0.9, 1}, {1, 0.3, 0.5, 0.9});
    summarise(task, request);
    REQUIRE(task.critical.size() == 1);
    // Means (0.2, 0.3), (0.4, 0.8), (0.8, 1): 0.9 lies halfway between the last two.
    CHECK(task.critical[0].footprint.kind == sweep::Critical::Kind::exact);
    CHECK(task.critical[0].footprint.x == Approx(0.6));
    CHECK(task.critical[0].peak_kv.x == Approx(0.3));
    // One sample twice, a quarter of all draws each: 0.3 + 0.4 * 2/3, and 0.5; else 0.6.
    CHECK(*task.critical[0].low == Approx(0.5));
    CHECK(*task.critical[0].high == Approx(0.6));
    CHECK(task.policies[1].score == Approx(0.3));
    CHECK(task.policies[1].score_interval.low == Approx(0.2));
    CHECK(task.policies[1].score_interval.high == Approx(0.4));
    // More attention, less error, a better score, and a smaller divergence go together here.
    REQUIRE(task.proxies.size() == 4);
    for (const ProxyFigures& proxy : task.proxies) CHECK(proxy.correlation == Approx(1));
  }
  SECTION("and is refused where the full cache fails") {
    add({0.4, 0.2, 0.7, 1}, {1, 0.1, 0.3, 0.7});
    summarise(task, request);
    CHECK(task.critical.empty());
    CHECK_THAT(task.why_not, Contains("score 0.40"));
  }
}
