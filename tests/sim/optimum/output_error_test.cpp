// SPDX-License-Identifier: Apache-2.0
// What eviction does to outputs, plan by plan and by the definition, against the additive bound.
#include "sim/optimum/output_error.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "sim/report/listing.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"

using namespace kvspan;
using namespace kvspan::optimum;
using Catch::Matchers::Contains;

namespace {

constexpr int kTokens = 7;
constexpr int kPrompt = 3;
constexpr std::size_t kDim = 3;

struct Case {
  test::TraceSpec spec;
  Trace trace;
  std::vector<RowIndex> ends{3, 4, 5, 6, 7};
  std::vector<char> counts = std::vector<char>(kTokens, 0);
};

// One layer, one KV head, two query heads; decode rows count.
Case random_case(std::uint64_t seed) {
  const test::TraceSpec spec = test::random_spec({.layers = 1,
                                                  .tokens = kTokens,
                                                  .prompt_tokens = kPrompt,
                                                  .query_heads = 2,
                                                  .kv_heads = 1,
                                                  .head_dim = static_cast<int>(kDim),
                                                  .seed = seed});
  Case out{spec, make_trace(spec)};
  std::fill(out.counts.begin() + kPrompt, out.counts.end(), char{1});
  return out;
}

// By the definition, sums over rows, mean over the two query heads.
struct ByHand {
  double retained = 0, weighted = 0, error = 0, lack = 0, bound = 0;
};

ByHand by_hand(const std::vector<std::vector<std::vector<double>>>& p, const std::vector<double>& v,
               const std::vector<RowIndex>& deaths) {
  ByHand out;
  for (const auto& of_head : p) {
    for (std::size_t row = kPrompt; row < kTokens; ++row) {
      double o[kDim] = {}, kept[kDim] = {};
      double left = 0;
      for (std::size_t t = 0; t <= row; ++t) {
        const bool alive = deaths[t] > static_cast<RowIndex>(row);
        if (alive) left += of_head[row][t];
        for (std::size_t d = 0; d < kDim; ++d) {
          o[d] += of_head[row][t] * v[t * kDim + d];
          if (alive) kept[d] += of_head[row][t] * v[t * kDim + d];
        }
      }
      double norm = 0, off = 0, lack = 0;
      for (std::size_t d = 0; d < kDim; ++d) {
        norm += o[d] * o[d];
        off += (kept[d] / left - o[d]) * (kept[d] / left - o[d]);
      }
      for (std::size_t t = 0; t <= row; ++t) {
        double far = 0;
        for (std::size_t d = 0; d < kDim; ++d)
          far += (v[t * kDim + d] - o[d]) * (v[t * kDim + d] - o[d]);
        if (deaths[t] <= static_cast<RowIndex>(row))
          lack += of_head[row][t] * std::sqrt(far / norm);
      }
      const double error = std::sqrt(off / norm);
      CHECK(left * error <= lack + 1e-12);  // the inequality itself, row by row
      const bool one_gone =
          std::count_if(deaths.begin(), deaths.begin() + static_cast<long>(row),
                        [&](RowIndex death) { return death <= static_cast<RowIndex>(row); }) == 1;
      if (one_gone) CHECK(left * error == Approx(lack));  // and where it is an equality
      out.retained += left / 2;
      out.weighted += left * error / 2;
      out.error += error / 2;
      out.lack += lack / 2;
      out.bound += lack / left / 2;
    }
  }
  return out;
}

// Every plan of a case: rows of death, each at the end of a pass.
template <class Use>
void for_all_plans(const std::vector<RowIndex>& ends, const Use& use) {
  std::vector<RowIndex> deaths;
  const auto next = [&](const auto& self, RowIndex token) -> void {
    if (token == kTokens) return use(deaths);
    for (const RowIndex end : ends) {
      if (end <= token) continue;
      deaths.push_back(end);
      self(self, token + 1);
      deaths.pop_back();
    }
  };
  next(next, 0);
}

// Most entries after any pass but the last.
std::int64_t most_held(const std::vector<RowIndex>& deaths, const std::vector<RowIndex>& ends) {
  std::int64_t most = 0;
  for (std::size_t k = 0; k + 1 < ends.size(); ++k) {
    std::int64_t held = 0;
    for (RowIndex t = 0; t < ends[k]; ++t) held += deaths[static_cast<std::size_t>(t)] > ends[k];
    most = std::max(most, held);
  }
  return most;
}

}  // namespace

TEST_CASE("what is lost of outputs is bounded by a sum over entries, in every plan",
          "[output_error]") {
  bool beaten = false;
  for (const std::uint64_t seed : {1U, 2U, 3U}) {
    const Case c = random_case(seed);
    const auto p = test::attention(c.spec, 0);
    const std::vector<double>& v = c.spec.layers[0].v;
    std::vector<double> least(kTokens + 1, std::numeric_limits<double>::infinity());
    std::vector<double> least_error(least);
    for_all_plans(c.ends, [&](const std::vector<RowIndex>& deaths) {
      const ByHand found = by_hand(p, v, deaths);
      for (auto b = static_cast<std::size_t>(most_held(deaths, c.ends)); b < least.size(); ++b) {
        least[b] = std::min(least[b], found.lack);
        least_error[b] = std::min(least_error[b], found.error);
      }
    });
    const Values values = error_values_of_head(c.trace, {0, 0, 1}, c.ends, c.counts);
    for (std::int64_t budget = 0; budget <= kTokens; ++budget) {
      INFO("seed " << seed << ", budget " << budget);
      const Capacities slots = constant_capacities(values, budget);
      const Optimum best = proved_plans(values, std::span(&slots, 1)).front();
      CHECK(to_share(missing(values, best.plan)) ==
            Approx(least[static_cast<std::size_t>(budget)]).margin(1e-6));
      const std::vector<std::vector<RowIndex>> deaths{deaths_of(values, best.plan)};
      const PlanErrors measured = errors_of_head(c.trace, {0, 0, 1}, c.counts, deaths).front();
      const ByHand expected = by_hand(p, v, deaths[0]);
      CHECK(measured.retained == Approx(expected.retained).epsilon(1e-5));
      CHECK(measured.weighted == Approx(expected.weighted).epsilon(1e-5).margin(1e-5));
      CHECK(measured.error == Approx(expected.error).epsilon(1e-5).margin(1e-5));
      CHECK(measured.bound == Approx(expected.bound).epsilon(1e-5).margin(1e-5));
      CHECK(least_error[static_cast<std::size_t>(budget)] <= measured.error + 1e-5);
      beaten |= least_error[static_cast<std::size_t>(budget)] < measured.error - 1e-3;
    }
  }
  CHECK(beaten);  // another plan may have less error: there is no regret in errors
}

TEST_CASE("errors of a trace are those that a run measures", "[output_error]") {
  // The plans as death rows of a run: the engine's output error is the survey's.
  const Trace trace = test::random_trace(24, 9, 5);
  SurveyRequest request;
  for (RowIndex end = 9; end <= 24; ++end) request.ends.push_back(end);
  request.counts.assign(24, 0);
  std::fill(request.counts.begin() + 9, request.counts.end(), char{1});
  request.budgets = {4, 24};
  const ErrorSurvey found = error_survey(trace, request);
  CHECK(found.rows == 15);
  CHECK(found.heads == 4);
  CHECK(found.certified == 4 * 2 * 2);
  const ErrorBounds& some = found.bounds[0];
  CHECK(some.plan.weighted <= some.least + 1e-6);
  CHECK(some.plan.error <= some.plan.bound + 1e-6);
  CHECK(some.least <= some.plan.bound);  // a row retains at most all
  CHECK(some.by_mass.retained >= some.plan.retained);
  CHECK(found.bounds[1].footprint == Approx(1));
  CHECK(found.bounds[1].plan.error == Approx(0).margin(1e-6));

  // streaming_llm(sinks=1,window=3) holds entries 0 and t - 3 ... t: its error by the engine.
  RunRequest run_request;
  run_request.specs = expand_policies({"streaming_llm(sinks=1,window=3)"}, {});
  const RunReport report = run(trace, run_request);
  PlanErrors sum;
  for (int layer = 0; layer < 2; ++layer) {
    for (int head = 0; head < 2; ++head) {
      const auto rows = report.runs[0].ledger.deaths(layer, head);
      const std::vector<std::vector<RowIndex>> deaths{{rows.begin(), rows.end()}};
      const PlanErrors one =
          errors_of_head(trace, {layer, head, 2}, request.counts, deaths).front();
      sum.error += one.error / (4 * 15);
      sum.retained += one.retained / (4 * 15);
    }
  }
  CHECK(sum.error == Approx(judged_phase(report.runs[0])->error_mean).epsilon(1e-5));
  CHECK(sum.retained == Approx(judged_phase(report.runs[0])->mass_mean).epsilon(1e-5));
}

TEST_CASE("a sink logit is an entry that stays, with a value of 0", "[output_error]") {
  // Logits 0 of two keys and a sink: p = 1/3 each. v = 1 and 4, o = 5/3. Row 1 without entry 0:
  // o' = 4/2 = 2, P = 2/3, P (o' - o) / o = 2/3 * 1/5; D = 1/3 * (5/3 - 1) / (5/3), the same.
  test::TraceSpec spec = test::weights_spec({0, 0}, 1, {}, {1, 4});
  spec.layers[0].sink_logits = {0};
  const Trace trace = make_trace(spec);
  const std::vector<char> counts{0, 1};
  const Values values = error_values_of_head(trace, {0, 0, 1}, {1, 2}, counts);
  CHECK(to_share(missing(values, {0, 1})) == Approx(2.0 / 15));
  const std::vector<std::vector<RowIndex>> deaths{{1, 2}};
  const PlanErrors found = errors_of_head(trace, {0, 0, 1}, counts, deaths).front();
  CHECK(found.retained == Approx(2.0 / 3));
  CHECK(found.error == Approx(0.2));
  CHECK(found.weighted == Approx(2.0 / 15));
  CHECK(found.bound == Approx(0.2));
}

TEST_CASE("output errors need values", "[output_error]") {
  const Trace trace = test::weights({0, 0, 0}, 1);
  REQUIRE_FALSE(trace.has_v());
  SurveyRequest request;
  request.ends = {1, 2, 3};
  request.counts = {0, 1, 1};
  request.budgets = {1};
  CHECK_THROWS_WITH(error_survey(trace, request),
                    Contains("a trace without v does not hold") && Contains("layers.*.q, .k and"));
  const Trace scores = Trace::open(std::string(KVSPAN_TRACES_DIR) + "/tiny-scores.safetensors");
  CHECK_THROWS_WITH(error_survey(scores, request), Contains("a score trace does not hold"));
}
