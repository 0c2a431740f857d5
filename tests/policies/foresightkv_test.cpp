// SPDX-License-Identifier: Apache-2.0
// ForesightKV: when it decides, what its statistics are, golden evictions, bytes.
#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <set>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/learn/regressor_set.h"
#include "sim/models/model_geometry.h"
#include "sim/policies/shared/fit_models.h"
#include "sim/policies/shared/fitted.h"
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
using test::weights;

namespace {

using Rows = std::vector<int>;

// Weights of foresightkv for one head whose drop score is `weight` times one of the 8 statistics of
// attention: max, min, sum, last 16, last 8, last 32, running sum, the same decayed.
class Statistic : public test::Folder {
 public:
  Statistic(std::size_t statistic, float weight) {
    Regressor model{"ridge",
                    8,
                    1,
                    0,
                    std::vector<float>(8, 0.0F),
                    std::vector<float>(8, 1.0F),
                    std::vector<float>(9, 0.0F)};
    model.parameters[statistic] = weight;
    RegressorSet set;
    set.scorer = "foresightkv";
    set.layer_ids = {0};
    set.regressors = {{model}};
    set.save(name());
  }
  [[nodiscard]] std::string policy(const std::string& more) const {
    return fmt::format("foresightkv(scorer=file,select=topk,weights=\"{}\",{})", name(), more);
  }

 private:
  [[nodiscard]] std::string name() const { return (path / "weights.safetensors").string(); }
};

// Row r >= 2 gives .5 to token 0 and .5 to itself, from row `turn` on to token 1; rows 0 and 1 give
// 1 to token 0.
Trace halves(int tokens, int prompt, int turn) {
  const auto n = static_cast<std::size_t>(tokens);
  test::Vectors keys(n, std::vector<double>(n, 0.0));
  test::Vectors queries(n, std::vector<double>(n, -200.0));
  for (std::size_t t = 0; t < n; ++t) {
    keys[t][t] = 1;
    queries[t][0] = 0;
    if (t >= 2) queries[t][t < static_cast<std::size_t>(turn) ? t : 1] = 0;
  }
  return test::one_head(keys, prompt, {}, queries);
}

}  // namespace

TEST_CASE("golden eviction with interval 1 keeps what is read most, not what is read next",
          "[policy][foresightkv]") {
  // Row 3 gives key 0 e^3 / (e^3 + 2 + e^-3) = .91, row 4 gives key 1 e^5 / (e^5 + 3 + e^-5) = .98:
  // with one place beside the newest key 2, key 0 goes although it is read next. At row 4's turn
  // the newest is 3; key 2 has a future of e^0 / 151 = .007 against .98.
  const Trace trace = weights({1, -1, 0, 0, 0}, 3, {1, 1, 1, 3, -5});
  CHECK(deaths(trace, "foresightkv(scorer=golden,budget=2,interval=1)") ==
        std::vector<int>{3, 5, 4, 5, 5});
}

TEST_CASE("golden eviction ranks by the largest mean of a future block", "[policy][foresightkv]") {
  // Blocks of 3 rows begin where it decides in decode, at 22, 25 and 28; a prompt of 21 has begun
  // the one before. All are divided by 3, short ones too.
  const int prompt = GENERATE(22, 21);
  const test::TraceSpec spec = test::random_spec({.layers = 1,
                                                  .tokens = 30,
                                                  .prompt_tokens = prompt,
                                                  .query_heads = 4,
                                                  .kv_heads = 2,
                                                  .head_dim = 4,
                                                  .seed = 5});
  const Trace trace = test::make_trace(spec);
  const auto a = attention(spec, 0);
  const int candidates = prompt - 3;  // the newest 3 are none
  for (std::size_t head = 0; head < 2; ++head) {
    std::vector<std::pair<double, int>> order;
    for (int t = 0; t < candidates; ++t) {
      double best = 0;
      for (int b = 19; b < 30; b += 3) {
        double mean = 0;
        for (int r = std::max(b, prompt); r < std::min(b + 3, 30); ++r) {
          for (std::size_t q = 2 * head; q < 2 * head + 2; ++q)
            mean += a[q][static_cast<std::size_t>(r)][static_cast<std::size_t>(t)] / 6;
        }
        best = std::max(best, mean);
      }
      order.emplace_back(best, t);
    }
    std::sort(order.rbegin(), order.rend());
    std::set<int> expected;
    for (std::size_t i = 0; i < 5; ++i) expected.insert(order[i].second);
    for (const RowIndex chunk : {0, 7}) {
      const auto d = deaths(trace, "foresightkv(scorer=golden,budget=8,interval=3)",
                            test::chunk(chunk), 0, static_cast<int>(head));
      for (int t = 0; t < prompt; ++t) {
        INFO(prompt << " " << head << " " << t << " " << chunk);
        const bool stays = t >= candidates || expected.contains(t);
        CHECK((d[static_cast<std::size_t>(t)] > prompt) == stays);
      }
    }
  }
}

TEST_CASE("foresightkv holds its budget after every interval, and the interval before it",
          "[policy][foresightkv]") {
  const Trace trace = random_trace(60, 40, 3);
  for (const char* scorer : {"ridge", "logit", "mlp", "attn", "golden"}) {
    INFO(scorer);
    const std::string spec = fmt::format("foresightkv(scorer={},budget=12,interval=4)", scorer);
    for (int layer = 0; layer < 2; ++layer) {
      for (int head = 0; head < 2; ++head) {
        const auto d = deaths(trace, spec, {}, layer, head);
        for (int row = 40; row < 60; ++row) {
          // Decisions after rows 40, 44, 48, ..., beside the prompt's end.
          CHECK(alive_after(d, row) == (row == 40 ? 12 : 12 + (row - 41) % 4));
          for (int t = row == 40 ? 36 : (row - 1) / 4 * 4 - 3; t < row; ++t)
            CHECK(d[static_cast<std::size_t>(t)] > row);
        }
      }
    }
  }
}

TEST_CASE("foresightkv decides one row after a length that the interval divides",
          "[policy][foresightkv]") {
  // Bug: it counted from the prompt's end, and decided in row 227. Row 128 is the 129th.
  const auto d = deaths(random_trace(260, 100, 3), "foresightkv(budget=110,interval=128)");
  for (int row = 111; row < 129; ++row) CHECK(alive_after(d, row) == row);
  CHECK(alive_after(d, 129) == 110);
  CHECK(alive_after(d, 256) == 110 + 127);
  CHECK(alive_after(d, 257) == 110);
}

TEST_CASE("foresightkv's first sums are over all rows so far", "[policy][foresightkv]") {
  // Bug: they were over the prompt's last interval.
  const Trace trace = halves(390, 300, 172);
  // The entries with the largest statistic leave, and their score is minus it.
  const auto leaves = [&](std::size_t statistic, int budget) {
    const Statistic model(statistic, 1);
    EngineOptions options;
    options.keep_scores = true;
    const RunResult run =
        test::run_one(trace, model.policy(fmt::format("budget={},interval=128", budget)), options);
    const auto death = run.ledger.deaths(0, 0);
    return std::array<double, 3>{static_cast<double>(death[0]),
                                 -static_cast<double>(run.ledger.score[0]),
                                 -static_cast<double>(run.ledger.score[1])};
  };
  const auto is = [](const std::array<double, 3>& got, const std::array<double, 3>& expected) {
    for (std::size_t i = 0; i < 3; ++i) CHECK(got[i] == Approx(expected[i]).epsilon(1e-4));
  };
  // At the prompt's end: 2 + 298 / 2, and 128 / 2. The last rows are counted as ever.
  for (const std::size_t sum : {2U, 6U, 7U}) is(leaves(sum, 200), {300, 151, 64});
  is(leaves(3, 200), {300, 8, 8});
  is(leaves(5, 200), {300, 16, 16});
  // n = budget: nobody leaves, and the sums have begun. After row 384 the last 128 rows are added.
  is(leaves(2, 300), {385, 64, 64});
  is(leaves(6, 300), {385, 151 + 64, 64 + 64});
  is(leaves(7, 300), {385, .9 * 151 + 64, .9 * 64 + 64});
  // n = budget - 1: they begin there, with all rows.
  for (const std::size_t sum : {2U, 6U, 7U}) is(leaves(sum, 301), {385, 2 + 383 / 2., 213 / 2.});
}

TEST_CASE("a fit of foresightkv sees the sums that a replay sees", "[policy][foresightkv]") {
  policies::FitOptions options;
  options.interval = 8;
  options.budget = 16;
  options.attention_only = true;
  const auto samples =
      policies::foresightkv_fit().gather(halves(64, 64, 64), 0, 0, 64, options).front();
  // Decisions at 24 and 32, token 0 first: max, min, sum, last 16, 8, 32, running sum, decayed.
  const std::vector<float> first(samples.x.begin(), samples.x.begin() + 8);
  CHECK(first == std::vector<float>{.5, .5, 13, 4, 4, 4, 13, 13});  // 2 + 22 / 2
  const auto second = std::find(samples.decision.begin(), samples.decision.end(), 1);
  const auto at = 8 * (second - samples.decision.begin());
  CHECK(samples.x[index(at + 2)] == 4);
  CHECK(samples.x[index(at + 6)] == 17);
  CHECK(samples.x[index(at + 7)] == Approx(.9 * 13 + 4));
}

TEST_CASE("a fit of foresightkv sees first decisions after prompts of several lengths",
          "[policy][foresightkv]") {
  // Bug: the first sums that it was fitted on were all of one length, and those after a longer
  // prompt were larger than any of them.
  policies::FitOptions options;
  options.interval = 8;
  options.budget = 16;
  options.attention_only = true;
  options.method = "logit";
  const auto samples =
      policies::foresightkv_fit().gather(halves(64, 64, 64), 0, 0, 64, options).front();
  // Golden decisions at 24, 32, 40, 48, 56; then prompts of 16, 24, ... 56.
  const auto of = [&](int decision) {
    const auto first = std::find(samples.decision.begin(), samples.decision.end(), decision);
    const auto last = std::find(first, samples.decision.end(), decision + 1);
    return std::pair{first - samples.decision.begin(), last - samples.decision.begin()};
  };
  for (int i = 0; i < 6; ++i) {
    const int row = 16 + 8 * i;
    const auto [first, last] = of(5 + i);
    REQUIRE(last - first == row - 8);
    const std::vector<float> x(samples.x.begin() + 8 * first, samples.x.begin() + 8 * first + 8);
    const float sum = 1 + static_cast<float>(row) / 2;  // two rows of 1, then .5
    CHECK(x == std::vector<float>{.5, .5, sum, 4, 4, 4, sum, sum});
    // A seventh of the candidates stays, as 8 of 16 do of the 56 at the end.
    CHECK(std::count(samples.y.begin() + first, samples.y.begin() + last, 0) == (row - 8) / 7);
  }
  CHECK(of(11).first == std::ssize(samples.decision));
}

TEST_CASE("three decisions of foresightkv in a row add up under its own cache",
          "[policy][foresightkv]") {
  // Interval 1, the smallest decayed sum leaves; head_dim 1, so that key j weighs w_j in every row.
  // Token 3, which weighs most, has just left the window (of one) at the second decision.
  const std::vector<double> w = {3, 1, 4, 40, 1, 1, 1, 1};
  std::vector<double> keys;
  for (const double x : w) keys.push_back(std::log(x));
  // After row 3 (n = 4, budget 3), rows 0 to 3 together, which weigh 3, 4, 8 and 48:
  //   0: 3/3 + 3/4 + 3/8 + 3/48 = 2.19   1: 1/4 + 1/8 + 1/48 = .40   2: 4/8 + 4/48 = .58   -> 1
  // Row 4: 0, 2, 3 and itself weigh 48:
  //   0: 1.97 + 3/48 = 2.03   2: .525 + 4/48 = .61   3: .9 x 40/48 + 40/48 = 1.58           -> 2
  // Row 5: 0, 3, 4 and itself weigh 45: 0: 1.89   3: 2.31   4: .9/48 + 1/45 = .04            -> 4
  // Row 6: the same with 5 in place of 4                                                    -> 5
  const Statistic model(7, -1);
  CHECK(deaths(weights(keys, 4, {}, w), model.policy("budget=3,interval=1")) ==
        Rows{8, 4, 5, 8, 6, 7, 8, 8});
}

TEST_CASE("foresightkv charges the published network, its queries and its sums",
          "[policy][foresightkv]") {
  const Geometry g = geometry_of(load_model("Qwen3-4B"), 4096, 1024, 0, 2);
  REQUIRE(g.layers() == 36);
  const Policy policy = make_policy("foresightkv(budget=1024)", g);
  const std::int64_t queries = std::int64_t{128} * 32 * 128 * 36;
  CHECK(policy.charge.once == 2 * (1336608 + queries));
  CHECK(policy.charge.entry == 16);  // two sums for each of four query heads, 2 bytes
  CHECK(fmt::format("{:.2f} MiB", 2 * 1336608 / 1048576.0) == "2.55 MiB");
  // 144 MiB kept and 180 MiB at an interval of 256.
  CHECK(std::int64_t{36} * 8 * 1024 * g.entry_bytes() == std::int64_t{144} << 20);
  const Policy attention = make_policy("foresightkv(budget=1024,scorer=attn)", g);
  CHECK(attention.charge.once == 2 * (36 * 8 * (32 * 16 + 33) + queries));
}

TEST_CASE("foresightkv draws its victims among the twice as many worst", "[policy][foresightkv]") {
  // Candidates 0..6 (the newest, 7, is none), to drop 2: rows after the prompt like larger keys, so
  // victims come from 0..3, and which of them depends on the seed.
  const Trace trace = weights({.0, .1, .2, .3, .4, .5, .6, .7, 0, 0}, 8);
  std::set<std::vector<int>> seen;
  for (int seed = 0; seed < 40; ++seed) {
    const auto d = deaths(trace, fmt::format("foresightkv(scorer=golden,select=sample,budget=6,"
                                             "interval=1,seed={})",
                                             seed));
    int dead = 0;
    for (std::size_t t = 0; t < 8; ++t) {
      if (d[t] != 8) continue;
      ++dead;
      CHECK(t < 4);
    }
    CHECK(dead == 2);
    seen.insert(d);
  }
  CHECK(seen.size() > 3);
  const std::string fitted = "foresightkv(budget=20,interval=4,seed={})";
  const Trace random = random_trace(60, 50, 2);
  CHECK(deaths(random, fmt::format(fmt::runtime(fitted), 1)) ==
        deaths(random, fmt::format(fmt::runtime(fitted), 1)));
  CHECK(deaths(random, fmt::format(fmt::runtime(fitted), 1)) !=
        deaths(random, fmt::format(fmt::runtime(fitted), 2)));
}

TEST_CASE("weights=self is the fit of the first half, and a file of it gives the same",
          "[policy][foresightkv][fit]") {
  const Trace trace = random_trace(90, 80, 8);
  const auto folder = std::filesystem::temp_directory_path() / "kvspan_self_test";
  std::filesystem::create_directories(folder);
  const std::string file = (folder / "weights.safetensors").string();
  policies::FitOptions options;
  options.method = "logit";
  options.interval = 5;
  options.budget = 16;
  policies::fit_models(policies::fitted_scorer("foresightkv"), {trace}, {}, options, nullptr,
                       nullptr)
      .set.save(file);
  const std::string spec = "foresightkv(budget=16,interval=5,select=topk,weights=\"{}\"{})";
  const auto text = [&](const std::string& w, const std::string& more) {
    return fmt::format(fmt::runtime(spec), w, more);
  };
  const RunResult self = test::run_one(trace, text("self", ""), {});
  CHECK(self.ledger.death == test::run_one(trace, text(file, ""), {}).ledger.death);
  CHECK(self.ledger.death == test::run_one(trace, text(file, ",scorer=file"), {}).ledger.death);
  CHECK_THROWS_WITH(test::run_one(trace, text(file, ",scorer=mlp"), {}),
                    Contains("holds logit, expected mlp"));
  CHECK_THROWS_WITH(test::run_one(trace, fmt::format("locret(weights=\"{}\")", file), {}),
                    Contains("was fitted for foresightkv"));
  std::filesystem::remove_all(folder);
}

TEST_CASE("foresightkv refuses what has no meaning", "[policy][foresightkv]") {
  const Trace trace = random_trace(20, 16, 1);
  const Geometry g = geometry_of(trace, {});
  CHECK_THROWS_AS(make_policy("foresightkv(scorer=file)", g), ConfigError);
  CHECK_THROWS_AS(make_policy("foresightkv(scorer=golden,weights=x)", g), ConfigError);
  CHECK_THROWS_AS(make_policy("foresightkv(interval=0)", g), ConfigError);
  CHECK_THROWS_AS(make_policy("foresightkv(budget=4)+snapkv(budget=4)", g), ConfigError);
  CHECK(make_policy("foresightkv(scorer=golden)", g).bound);
  CHECK_FALSE(make_policy("foresightkv", g).bound);
  // The size may be spread over layers.
  CHECK(test::run_one(trace, "pyramid+foresightkv(budget=6,interval=2)", {}).metrics.footprint < 1);
}
