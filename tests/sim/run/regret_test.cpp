// SPDX-License-Identifier: Apache-2.0
// Regrets of the whole catalogue: nobody is better than the optimum at the same occupancy.
#include "sim/run/regret.h"

#include <algorithm>
#include <cmath>

#include <catch2/catch.hpp>

#include "sim/attention/head_attention.h"
#include "sim/base/error.h"
#include "sim/report/listing.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"

using namespace kvspan;
using Catch::Matchers::Contains;

namespace {

RunReport with_regrets(const Trace& trace, const std::vector<std::string>& policies,
                       const std::vector<std::string>& budgets, RowIndex chunk,
                       RowIndex fidelity_rows = 0) {
  RunRequest request;
  request.specs = expand_policies(policies, budgets);
  request.skips = true;
  request.regret = true;
  request.engine.chunk = chunk;
  request.engine.fidelity_rows = fidelity_rows;
  request.engine.threads = 2;
  return run(trace, request);
}

double frontier_at(const RunReport& report, double footprint) {
  const auto& points = report.frontier;
  const auto after = std::find_if(points.begin(), points.end(), [&](const FrontierPoint& point) {
    return point.footprint >= footprint;
  });
  return after == points.end() ? points.back().retained : after->retained;
}

}  // namespace

TEST_CASE("no policy of the catalogue is better than the optimum", "[regret]") {
  const Trace trace = test::random_trace(44, 30, 21);
  for (const RowIndex chunk : {0, 7}) {
    const RunReport report =
        with_regrets(trace, {"all", "snapkv(group=none,window=4)", "chunked(tova)", "block(h2o)"},
                     {"5", "40%"}, chunk);
    std::size_t compared = 0;
    for (const RunResult& run : report.runs) {
      INFO(run.spec << " chunk " << chunk);
      if (!run.regret) continue;
      ++compared;
      const double retained = judged_phase(run)->mass_mean;
      CHECK(run.regret->optimum >= retained - 1e-6);
      CHECK(run.regret->optimum <= 1 + 1e-9);
      CHECK(run.regret->regret == Approx(run.regret->optimum - retained).margin(1e-6));
      const double held = run.metrics.footprint + run.metrics.host_footprint;
      CHECK(run.regret->footprint <= held + 1e-6);
      CHECK(retained <= frontier_at(report, held) + 1e-6);
    }
    CHECK(compared > 60);
  }
}

TEST_CASE("a regret does not depend on the other runs", "[regret]") {
  // Bug: the least footprint was read off a frontier that allowed deaths wherever any run of the
  // report had a pass end, so that a policy looked worse beside one that acts inside the prompt.
  const Trace trace = test::random_trace(44, 30, 21);
  const RunReport all =
      with_regrets(trace, {"tova", "locret(local=4)", "snapkv(group=none,window=4)"}, {"5"}, 0);
  CHECK(all.runs[0].ledger.plan.ends != all.runs[1].ledger.plan.ends);
  for (const RunResult& run : all.runs) {
    INFO(run.spec);
    const RunReport alone = with_regrets(trace, {run.spec}, {}, 0);
    REQUIRE(run.regret);
    CHECK(run.regret->footprint == alone.runs[0].regret->footprint);
    CHECK(run.regret->optimum == alone.runs[0].regret->optimum);
  }
}

TEST_CASE("a regret is what pen and paper say", "[regret]") {
  // Weights 1, 4, 2, 1, ...: rows 3, 4, 5 are decoded, one slot beside each row's own entry. The
  // best is entry 1 (weight 4) throughout: row 3 reads 4 + 1 of 8, row 4 of 9, row 5 of 10.
  const Trace trace = test::weights({0, std::log(4), std::log(2), 0, 0, 0}, 3);
  const RunReport report =
      with_regrets(trace, {"full", "streaming_llm(sinks=1,window=0)", "kivi"}, {}, 0);
  const double mean = (5.0 / 8 + 5.0 / 9 + 5.0 / 10) / 3;
  const RunResult& sink = report.runs[1];
  REQUIRE(sink.regret);
  CHECK(sink.regret->optimum == Approx(mean));
  // It holds entry 0: 2 of 8, 9 and 10.
  CHECK(sink.regret->regret == Approx((3.0 / 8 + 3.0 / 9 + 3.0 / 10) / 3));
  REQUIRE(report.runs[0].regret);
  CHECK(report.runs[0].regret->optimum == Approx(1));
  CHECK(report.runs[0].regret->regret == Approx(0).margin(1e-6));
  CHECK_FALSE(report.runs[2].regret);  // numbers of two bits
  REQUIRE_FALSE(report.frontier.empty());
  CHECK(report.frontier.back().retained == Approx(1));
  // The least that anybody holds: the prompt's 1 + 2 + 3, and each row itself, of 21.
  CHECK(report.frontier.front().footprint == Approx(9.0 / 21));
}

TEST_CASE("the best plan holds what its run held, and retains what was said", "[regret]") {
  const Trace trace = test::random_trace(44, 30, 21);
  RunRequest request;
  request.specs = expand_policies({"h2o", "snapkv(group=none,window=4)", "kivi"}, {"5"});
  request.regret = request.plans = true;
  const RunReport report = run(trace, request);
  REQUIRE(report.plans.size() == 3);
  CHECK(report.plans[2].empty());  // numbers of two bits
  const RunReport plans = report_of_plans(report);
  REQUIRE(plans.runs.size() == 2);
  CHECK(plans.runs[0].label == "optimum of h2o(budget=5)");
  for (std::size_t r = 0; r < 2; ++r) {
    INFO(report.runs[r].spec);
    const Ledger& run = report.runs[r].ledger;
    const Ledger& plan = plans.runs[r].ledger;
    double retained = 0;
    for (int layer = 0; layer < run.layers; ++layer) {
      for (int head = 0; head < run.heads; ++head) {
        // Where a slot is worth nothing, the plan may leave it empty.
        for (const RowIndex end : run.plan.ends) {
          if (end == 44) break;
          const auto alive = [&](const Ledger& ledger) {
            const auto deaths = ledger.deaths(layer, head);
            return std::count_if(deaths.begin(), deaths.begin() + end,
                                 [&](std::uint32_t death) { return death > end; });
          };
          CHECK(alive(plan) <= alive(run));
        }
        HeadAttentionOptions early;
        early.end = 30;
        const HeadAttention received =
            attention_of_head(trace, {layer, head, run.heads}, plan.deaths(layer, head));
        const HeadAttention prompt =
            attention_of_head(trace, {layer, head, run.heads}, plan.deaths(layer, head), early);
        for (std::size_t t = 0; t < 44; ++t) retained += received.received[t] - prompt.received[t];
      }
    }
    CHECK(retained / (14.0 * run.layers * run.heads) ==
          Approx(report.runs[r].regret->optimum).epsilon(1e-4));
  }
}

TEST_CASE("regrets follow the rows that were measured", "[regret]") {
  const Trace trace = test::random_trace(40, 20, 4);
  const RunReport report = with_regrets(trace, {"tova"}, {"6"}, 0, 3);
  REQUIRE(report.runs[0].regret);
  CHECK(report.runs[0].regret->optimum >= judged_phase(report.runs[0])->mass_mean - 1e-6);
  CHECK(report.runs[0].regret->optimum < 1);
}

TEST_CASE("regrets that cannot be had are refused", "[regret]") {
  RunRequest request;
  request.specs = expand_policies({"full"}, {});
  request.regret = true;
  request.engine.fidelity = false;
  CHECK_THROWS_WITH(run(test::random_trace(8, 4, 1), request),
                    Contains("--regret: found --fidelity none"));
  request.engine.fidelity = true;
  const Trace scores = Trace::open(std::string(KVSPAN_TRACES_DIR) + "/tiny-scores.safetensors");
  CHECK_THROWS_WITH(run(scores, request), Contains("expected a trace with layers.*.q"));
}
