// SPDX-License-Identifier: Apache-2.0
// Attention that is measured on a random sample: what is measured is what the whole has there, and
// intervals hold the whole's mean as often as they say.
#include <cmath>
#include <set>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/random.h"
#include "sim/replay/estimate.h"
#include "sim/run/request.h"
#include "sim/run/run.h"
#include "tests/support/trace_builder.h"

using namespace kvspan;
using Of = FidelitySample::Of;

namespace {

constexpr int kLayers = 4, kKvHeads = 3;
constexpr RowIndex kSampled = 40, kSampledPrompt = 24;

Trace random_trace() {
  return test::make_trace(test::random_spec({.layers = kLayers,
                                             .tokens = kSampled,
                                             .prompt_tokens = kSampledPrompt,
                                             .query_heads = 2 * kKvHeads,
                                             .kv_heads = kKvHeads}));
}

EngineOptions sampling(Of of, std::int64_t count, std::uint64_t seed) {
  EngineOptions options;
  options.chunk = 8;
  options.threads = 1;
  options.sample = {of, count, seed};
  return options;
}

std::vector<RecipeSpec> policies() {
  return expand_policies(
      {"full", "streaming_llm(budget=12)", "snapkv(budget=8,window=4)", "h2o(budget=10)",
       "knorm(budget=8)", "quest(budget=8,page=4)", "chunked(tova(budget=50%))",
       "kivi(group=4,residual=8)", "adakv(budget=8)"},
      {});
}

double mean_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

}  // namespace

TEST_CASE("an estimate's interval is Student's, narrower where little is left out", "[sample]") {
  // s^2 = 0.025, t of 4 degrees 2.776445: 0.3 +- 2.776445 sqrt(0.025 / 5 * (1 - 5 / 10)).
  const std::vector<double> five{0.1, 0.2, 0.3, 0.4, 0.5};
  const Estimate half = estimate_mean(five, 10);
  CHECK(half.mean == Approx(0.3));
  CHECK(half.low == Approx(0.3 - 0.13882225));
  CHECK(half.high == Approx(0.3 + 0.13882225));
  const Estimate all = estimate_mean(five, 5);
  CHECK(all.low == all.mean);
  CHECK(all.high == all.mean);
  // t of 1 degree is 12.7: a share is at most 1.
  CHECK(estimate_mean(std::vector<double>{0.2, 0.4}, 4).low == 0);
  CHECK(estimate_mean(std::vector<double>{0.2, 0.4}, 4).high == 1);
  CHECK(estimate_mean(std::vector<double>{0.2}, 4).high == 1);
}

TEST_CASE("over all samples an estimate is right, and its squared error, too", "[sample]") {
  // All 20 samples of 3 of 6: the mean of the means is the mean, and the mean of the estimated
  // variances is the variance of the means.
  const std::vector<double> values{0.31, 0.9, 0.77, 0.4, 0.52, 0.66};
  constexpr double kT = 4.302652729911275;  // of 2 degrees
  std::vector<double> means, variances;
  for (std::size_t a = 0; a < 6; ++a) {
    for (std::size_t b = a + 1; b < 6; ++b) {
      for (std::size_t c = b + 1; c < 6; ++c) {
        // A tenth of the values: no interval meets 0 or 1.
        const Estimate e = estimate_mean(
            std::vector<double>{0.5 + values[a] / 10, 0.5 + values[b] / 10, 0.5 + values[c] / 10},
            6);
        means.push_back(e.mean);
        variances.push_back(std::pow((e.high - e.low) / 2 / kT, 2));
      }
    }
  }
  REQUIRE(means.size() == 20);
  const double whole = 0.5 + mean_of(values) / 10;
  CHECK(mean_of(means) == Approx(whole));
  double variance = 0;
  for (const double mean : means) variance += (mean - whole) * (mean - whole) / 20;
  CHECK(mean_of(variances) == Approx(variance));
}

TEST_CASE("a sample measures what the whole has there, and changes no decision", "[sample]") {
  const Trace trace = random_trace();
  const std::vector<RunResult> whole =
      run_policies(trace, policies(), sampling(Of::everything, 0, 0), {});
  for (const auto& [of, count] : {std::pair(Of::rows, 5), {Of::heads, 4}, {Of::layers, 2}}) {
    const std::vector<RunResult> part = run_policies(trace, policies(), sampling(of, count, 7), {});
    for (std::size_t p = 0; p < whole.size(); ++p) {
      INFO(whole[p].spec << " sample " << static_cast<int>(of));
      const Fidelity& all = *whole[p].fidelity;
      const Fidelity& some = *part[p].fidelity;
      CHECK(part[p].ledger.death == whole[p].ledger.death);
      CHECK(part[p].ledger.selected == whole[p].ledger.selected);
      CHECK(part[p].metrics.peak_bytes.total == whole[p].metrics.peak_bytes.total);
      std::vector<double> measured;
      std::set<std::pair<int, int>> heads;
      for (int l = 0; l < kLayers; ++l) {
        for (int q = 0; q < 2 * kKvHeads; ++q) {
          const double mass = some.head_mass[index(l)][index(q)];
          if (std::isnan(mass)) continue;
          heads.emplace(l, q / 2);
          measured.push_back(mass);
          if (of != Of::rows) CHECK(mass == all.head_mass[index(l)][index(q)]);
        }
      }
      if (of == Of::rows) {
        CHECK(some.decode_sample == 5);
        CHECK(some.prefill_sample == 5);
        measured.clear();
        for (RowIndex row = 0; row < kSampled; ++row) {
          const float mass = some.row_mass[index(row)];
          if (std::isnan(mass)) continue;
          CHECK(mass == all.row_mass[index(row)]);
          if (row >= kSampledPrompt) measured.push_back(double{mass});
        }
      }
      const std::size_t expected = of == Of::rows ? 5 : of == Of::heads ? 4 * 2 : 2 * 2 * kKvHeads;
      CHECK(measured.size() == expected);
      CHECK(heads.size() == (of == Of::rows ? 12U : of == Of::heads ? 4U : 6U));
      CHECK(some.decode->mass_mean == Approx(mean_of(measured)).epsilon(1e-6));
      REQUIRE(some.estimate.has_value());
      CHECK(some.estimate->mean == Approx(some.decode->mass_mean).epsilon(1e-9));
      CHECK(some.estimate->drawn == count);
      CHECK(some.estimate->of == (of == Of::rows ? 16 : of == Of::heads ? 12 : 4));
      CHECK_FALSE(all.estimate.has_value());
    }
  }
  // More than there is: the whole, without doubt.
  const RunResult everything =
      run_policies(trace, {parse_spec("h2o(budget=10)")}, sampling(Of::heads, 99, 0), {}).front();
  CHECK(everything.fidelity->estimate->low == everything.fidelity->estimate->high);
  CHECK(everything.fidelity->decode->mass_mean == whole[3].fidelity->decode->mass_mean);
}

TEST_CASE("19 of 20 intervals hold the mean of the whole", "[sample]") {
  const Trace trace = random_trace();
  const std::vector<RecipeSpec> specs{parse_spec("streaming_llm(budget=12)"),
                                      parse_spec("h2o(budget=10)")};
  const std::vector<RunResult> whole =
      run_policies(trace, specs, sampling(Of::everything, 0, 0), {});
  constexpr int kDraws = 200;
  for (const auto& [of, count] : {std::pair(Of::rows, 6), {Of::heads, 5}, {Of::layers, 3}}) {
    std::vector<int> held(specs.size(), 0);
    std::vector<double> means;
    for (int draw = 0; draw < kDraws; ++draw) {
      const auto runs = run_policies(
          trace, specs, sampling(of, count, splitmix64(static_cast<std::uint64_t>(draw))), {});
      for (std::size_t p = 0; p < specs.size(); ++p) {
        const Estimate& e = *runs[p].fidelity->estimate;
        const double truth = whole[p].fidelity->decode->mass_mean;
        held[p] += e.low <= truth && truth <= e.high ? 1 : 0;
        if (p == 0) means.push_back(e.mean - truth);
      }
    }
    INFO("sample " << static_cast<int>(of) << ": " << held[0] << " and " << held[1] << " of 200");
    for (const int one : held) CHECK(one >= 180);
    CHECK(std::abs(mean_of(means)) < 0.005);  // no bias
  }
}

TEST_CASE("what a sample is of is said in words", "[sample]") {
  EngineOptions engine;
  apply_sample("heads=12", engine);
  CHECK(engine.sample.of == Of::heads);
  CHECK(engine.sample.count == 12);
  apply_sample("", engine);
  CHECK(engine.sample.of == Of::everything);
  for (const char* wrong : {"12", "heads", "heads=", "heads=0", "head=3", "rows=-1", "layers=3x"})
    CHECK_THROWS_WITH(apply_sample(wrong, engine),
                      Catch::Contains("expected rows=K, heads=K or layers=K"));
}
