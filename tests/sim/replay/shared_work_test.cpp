// SPDX-License-Identifier: Apache-2.0
// Budgets of one ranking share its scores, and all share column sums and fits: with the same bits
// as each alone, and with one computation.
#include <atomic>

#include <catch2/catch.hpp>

#include "sim/policies/shared/helpers.h"
#include "sim/policy/memo.h"
#include "sim/replay/engine.h"
#include "sim/run/run.h"
#include "tests/support/trace_builder.h"

using namespace kvspan;

namespace {

Trace trace_of(int layers, int tokens, int prompt) {
  test::TraceSpec spec = test::random_spec({.layers = layers,
                                            .tokens = tokens,
                                            .prompt_tokens = prompt,
                                            .query_heads = 4,
                                            .kv_heads = 2,
                                            .head_dim = 8,
                                            .seed = 11,
                                            .dtype = Dtype::f16});
  spec.meta.rope = Rope{.theta = 10000, .dim = 8, .interleaved = false, .inverse_frequencies = {}};
  return test::make_trace(spec);
}

// Counts how often it is asked.
class Counted final : public Scorer {
 public:
  explicit Counted(std::shared_ptr<std::atomic<int>> calls) : calls_(std::move(calls)) {}
  double score(const View& /*view*/, int /*head*/, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    ++*calls_;
    for (std::size_t i = 0; i < entries.size(); ++i) out[i] = (entries[i] * 7) % 31;
    return 0;
  }

 private:
  std::shared_ptr<std::atomic<int>> calls_;
};

PolicyEntry counted(const std::shared_ptr<std::atomic<int>>& calls, Sharing sharing) {
  PolicyEntry entry;
  entry.name = "counted";
  entry.parameters = {policies::budget_parameter(), {.name = "other", .fallback = "1"}};
  entry.make = [=](Arguments& arguments, const Geometry& geometry) {
    Scoring scoring;
    scoring.make = [calls](const LayerShape&) { return std::make_unique<Counted>(calls); };
    scoring.sharing = sharing;
    return policies::budgeted(arguments, geometry, policies::own(scoring));
  };
  return entry;
}

}  // namespace

TEST_CASE("budgets together decide as each alone, bit for bit", "[engine]") {
  const Trace trace = trace_of(2, 150, 120);
  EngineOptions options;
  options.chunk = 50;
  std::vector<RecipeSpec> specs;
  for (const char* policy : {"snapkv(window=8)",
                             "pyramidkv(window=8)",
                             "adakv(window=8)",
                             "headkv(window=8)",
                             "tova",
                             "h2o",
                             "observed_attention",
                             "knorm",
                             "keydiff",
                             "cur",
                             "lagkv(lag=16)",
                             "expected_attention",
                             "judgeq(m=4)",
                             "keyformer",
                             "keyformer(variant=code)",
                             "locret(local=10)",
                             "foresightkv(interval=8)",
                             "baklava",
                             "chunked(snapkv(window=8))",
                             "chunked(expected_attention)",
                             "chunked(h2o)",
                             "chunked(keyformer)",
                             "chunked(lagkv(lag=8))",
                             "criticalkv(snapkv(window=8))",
                             "block(keydiff)",
                             "snapkv(window=8)+kivi(group=8,residual=16)"}) {
    for (const char* budget : {"100%", "40%", "20%", "6%"}) {
      RecipeSpec spec = parse_spec(policy);
      apply_budget(spec, budget);
      specs.push_back(std::move(spec));
    }
  }
  options.threads = 3;
  options.block_rows = 16;
  const std::vector<RunResult> together = run_policies(trace, specs, options, {});
  options.threads = 1;
  options.block_rows = 64;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const RunResult alone = std::move(run_policies(trace, {specs[i]}, options, {})[0]);
    INFO(alone.spec);
    CHECK(alone.ledger.death == together[i].ledger.death);
    CHECK(alone.fidelity->row_mass == together[i].fidelity->row_mass);
    CHECK(alone.fidelity->head_mass == together[i].fidelity->head_mass);
    CHECK(alone.fidelity->all->error_mean == together[i].fidelity->all->error_mean);
    CHECK(alone.fidelity->all->mass_p5 == together[i].fidelity->all->mass_p5);
  }
}

TEST_CASE("the scores of one ranking are computed once", "[engine]") {
  const Trace trace = trace_of(3, 40, 32);
  for (const auto& [sharing, times] :
       {std::pair(Sharing::always, 1), std::pair(Sharing::once, 1), std::pair(Sharing::none, 6)}) {
    const auto calls = std::make_shared<std::atomic<int>>(0);
    const PolicyEntry entry = counted(calls, sharing);
    EngineOptions options;
    options.threads = 2;
    const Geometry geometry = geometry_of(trace, options);
    std::vector<Policy> policies;
    for (const char* budget : {"32", "4", "8", "8", "12", "16", "24"}) {
      const RecipeSpec spec = parse_spec(std::string("counted(budget=") + budget + ")");
      policies.push_back(bind(make_recipe(entry, spec.front(), geometry), geometry));
    }
    const std::vector<Replay> replays = replay(trace, policies, options);
    // Three layers of two heads; the budget of 32 keeps all and asks nothing.
    CHECK(*calls == 3 * 2 * times);
    CHECK(replays[0].ledger.death == std::vector<std::uint32_t>(3 * 2 * 40, 40));
    // 7 t mod 31 over t = 0 .. 31, best first: 31 t 27 9 -> 30 29 ...: of budget 4 stay those with
    // 30, 29, 28, 27: t = 22, 13, 4, 26.
    for (const int t : {22, 13, 4, 26}) CHECK(replays[1].ledger.deaths(0, 0)[index(t)] == 40);
    CHECK(std::count(replays[1].ledger.death.begin(), replays[1].ledger.death.end(), 32U) ==
          3 * 2 * 28);
  }
  // Another parameter is another ranking.
  const auto calls = std::make_shared<std::atomic<int>>(0);
  const PolicyEntry entry = counted(calls, Sharing::always);
  const Geometry geometry = geometry_of(trace, {});
  std::vector<Policy> policies;
  for (const char* text : {"counted(budget=4)", "counted(budget=8,other=2)"})
    policies.push_back(bind(make_recipe(entry, parse_spec(text).front(), geometry), geometry));
  (void)replay(trace, policies, {});
  CHECK(*calls == 3 * 2 * 2);
}

TEST_CASE("a memo makes a value once, and remembers no failure", "[engine]") {
  Memo memo;
  int made = 0;
  const auto get = [&](const std::string& key) {
    return *memo.get<int>(key, [&] {
      if (key == "bad") throw std::runtime_error("no");
      return ++made;
    });
  };
  CHECK(get("a") == 1);
  CHECK(get("b") == 2);
  CHECK(get("a") == 1);
  CHECK_THROWS(get("bad"));
  CHECK_THROWS(get("bad"));
  CHECK(made == 2);
  CHECK(*remembered<int>(nullptr, "a", [] { return 7; }) == 7);
}
