// SPDX-License-Identifier: Apache-2.0
// foresightkv, write_gate, judgeq, locret: worked examples, bytes, bounds.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/models/model_geometry.h"
#include "sim/policies/shared/fit_models.h"
#include "sim/predict/analytic.h"
#include "tests/support/cases.h"
#include "tests/support/trace_builder.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::deaths;
using test::random_trace;
using test::weights;

namespace {

// [query_heads][rows][keys] full-cache probabilities of one layer, by the definition.
std::vector<std::vector<std::vector<double>>> attention(const test::TraceSpec& spec, int layer) {
  const auto& l = spec.layers[static_cast<std::size_t>(layer)];
  const auto n = static_cast<std::size_t>(spec.meta.tokens);
  const auto heads = static_cast<std::size_t>(spec.meta.query_heads);
  const auto kv = static_cast<std::size_t>(spec.meta.kv_heads);
  const auto d = static_cast<std::size_t>(spec.meta.head_dim);
  std::vector<std::vector<std::vector<double>>> out(heads, std::vector<std::vector<double>>(n));
  for (std::size_t h = 0; h < heads; ++h) {
    for (std::size_t r = 0; r < n; ++r) {
      double sum = 0;
      for (std::size_t j = 0; j <= r; ++j) {
        double z = 0;
        for (std::size_t c = 0; c < d; ++c)
          z += l.q[(r * heads + h) * d + c] * l.k[(j * kv + h / (heads / kv)) * d + c];
        out[h][r].push_back(std::exp(z / std::sqrt(static_cast<double>(d))));
        sum += out[h][r].back();
      }
      for (double& p : out[h][r]) p /= sum;
    }
  }
  return out;
}

// A file with one F32 tensor [layers, heads, tokens].
class Table {
 public:
  Table(const std::string& tensor, const std::vector<std::int64_t>& shape,
        const std::vector<double>& values) {
    std::filesystem::create_directories(path_.parent_path());
    test::write_tensors(path_, {},
                        {{tensor, {Dtype::f32, shape, test::encode(values, Dtype::f32)}}});
  }
  ~Table() { std::filesystem::remove_all(path_.parent_path()); }
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;
  [[nodiscard]] std::string name() const { return path_.string(); }

 private:
  std::filesystem::path path_ =
      std::filesystem::temp_directory_path() / "kvspan_fitted_test" / "table.safetensors";
};

int alive_after(const std::vector<int>& d, int row) {
  int count = 0;
  for (int t = 0; t < row; ++t) count += d[static_cast<std::size_t>(t)] > row ? 1 : 0;
  return count;
}

}  // namespace

// ---- foresightkv ---------------------------------------------------------------------------------

TEST_CASE("golden eviction with interval 1 keeps what is read most, not what is read next",
          "[policy][foresightkv]") {
  // Row 3 gives key 0 e^3 / (e^3 + 2 + e^-3) = .91, row 4 gives key 1 e^5 / (e^5 + 3 + e^-5) = .98:
  // with one place beside the newest key 2, key 0 goes although it is read next. At row 4's turn the
  // newest is 3; key 2 has a future of e^0 / 151 = .007 against .98.
  const Trace trace = weights({1, -1, 0, 0, 0}, 3, {1, 1, 1, 3, -5});
  CHECK(deaths(trace, "foresightkv(scorer=golden,budget=2,interval=1)") ==
        std::vector<int>{3, 5, 4, 5, 5});
}

TEST_CASE("golden eviction ranks by the largest mean of a future block", "[policy][foresightkv]") {
  const test::TraceSpec spec = test::random_spec({.layers = 1,
                                                  .tokens = 30,
                                                  .prompt_tokens = 22,
                                                  .query_heads = 4,
                                                  .kv_heads = 2,
                                                  .head_dim = 4,
                                                  .seed = 5});
  const Trace trace = test::make_trace(spec);
  const auto a = attention(spec, 0);
  for (std::size_t head = 0; head < 2; ++head) {
    // Blocks of 3 rows from the prompt's end: [22, 25) [25, 28) [28, 30), the last divided by 3, too.
    std::vector<std::pair<double, int>> order;
    for (int t = 0; t < 19; ++t) {  // the newest 3 are no candidates
      double best = 0;
      for (int b = 22; b < 30; b += 3) {
        double mean = 0;
        for (int r = b; r < std::min(b + 3, 30); ++r) {
          for (std::size_t q = 2 * head; q < 2 * head + 2; ++q)
            mean += a[q][static_cast<std::size_t>(r)][static_cast<std::size_t>(t)] / 6;
        }
        best = std::max(best, mean);
      }
      order.emplace_back(best, t);
    }
    std::sort(order.rbegin(), order.rend());
    std::vector<int> expected(19, 22);
    for (std::size_t i = 0; i < 5; ++i) expected[static_cast<std::size_t>(order[i].second)] = 0;
    const auto d = deaths(trace, "foresightkv(scorer=golden,budget=8,interval=3)", {}, 0,
                          static_cast<int>(head));
    for (std::size_t t = 0; t < 19; ++t) {
      INFO(head << " " << t);
      CHECK((d[t] == 22) == (expected[t] == 22));
    }
    for (std::size_t t = 19; t < 22; ++t) CHECK(d[t] > 22);
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
          CHECK(alive_after(d, row) == 12 + (row - 40) % 4);
          for (int t = row / 4 * 4 - 4; t < row; ++t) CHECK(d[static_cast<std::size_t>(t)] > row);
        }
      }
    }
  }
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
                    Contains("holds ridge, expected mlp"));
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

// ---- write_gate ----------------------------------------------------------------------------------

TEST_CASE("write_gate drops what was not admitted when it leaves the window",
          "[policy][write_gate]") {
  // Window 2, prompt 5: at the prompt's end 0..2 are outside; the rows 5, 6 push out 3 and 4.
  const Trace trace = weights({0, 0, 0, 0, 0, 0, 0, 0}, 5);
  const Table file("gates", {1, 1, 8}, {.9, .05, .1, .05, .5, 0, 0, 0});
  const std::string spec = fmt::format("write_gate(gate=file,window=2,weights=\"{}\"", file.name());
  CHECK(deaths(trace, spec + ")") == std::vector<int>{8, 5, 5, 6, 8, 8, 8, 8});
  CHECK(deaths(trace, spec + ",tau=0.04)") == std::vector<int>(8, 8));
  // Row 7 has pushed nothing out: a row attends before the entry behind its window leaves.
  CHECK(deaths(trace, spec + ",tau=0.6)") == std::vector<int>{8, 5, 5, 6, 7, 8, 8, 8});
}

TEST_CASE("prompt rows read their window and the admitted keys", "[policy][write_gate]") {
  // Equal logits, key 0 admitted: row r reads min(r + 1, 2) of its window and key 0 from row 2 on.
  //   rows 0..4: 1/1, 2/2, 3/3, 3/4, 3/5
  const Trace trace = weights({0, 0, 0, 0, 0, 0}, 5);
  const Table file("gates", {1, 1, 6}, {.9, 0, 0, 0, 0, 0});
  const std::string spec = fmt::format("write_gate(gate=file,window=2,weights=\"{}\"", file.name());
  CHECK(test::run_one(trace, spec + ")", {}).fidelity->prefill->mass_mean ==
        Approx((3 + 0.75 + 0.6) / 5));
  CHECK(test::run_one(trace, spec + ",masks_prefill=false)", {}).fidelity->prefill->mass_mean == 1);
}

TEST_CASE("write_gate admits the rate it was asked for", "[policy][write_gate]") {
  const Trace trace = random_trace(70, 60, 4);
  for (const char* gate : {"oracle", "oracle_out", "logit", "mlp", "adaea"}) {
    for (const int rate : {1, 25, 50, 100}) {
      INFO(gate << " " << rate);
      // One percent of the fit's samples is none: with one class, all gates are equal.
      if (rate == 1 && (std::string(gate) == "logit" || std::string(gate) == "mlp")) continue;
      const RunResult run = test::run_one(
          trace, fmt::format("write_gate(gate={},rate={}%,window=10)", gate, rate), {});
      int admitted = 0;
      for (int l = 0; l < 2; ++l) {
        for (int h = 0; h < 2; ++h) {
          const auto d = run.ledger.deaths(l, h);
          for (std::size_t t = 0; t < 50; ++t) admitted += d[t] > 60 ? 1 : 0;
          for (std::size_t t = 50; t < 60; ++t) CHECK(d[t] > 60);
        }
      }
      const int wanted = 4 * 50 * rate / 100;
      if (std::string(gate) == "adaea") {  // ties of quantiles, and sinks
        CHECK(admitted == Approx(std::max(wanted, 16)).margin(8));
      } else {
        CHECK(admitted == wanted);
      }
    }
  }
  const RunResult run =
      test::run_one(random_trace(400, 380, 4), "write_gate(gate=random,rate=30%,window=10)", {});
  CHECK(run.metrics.timeline.resident_entries[380] == Approx(4 * (10 + .3 * 370)).margin(60));
}

TEST_CASE("the oracle gate admits by the largest probability behind the window",
          "[policy][write_gate]") {
  const test::TraceSpec spec = test::random_spec(
      {.layers = 1, .tokens = 24, .prompt_tokens = 20, .query_heads = 2, .kv_heads = 1});
  const auto a = attention(spec, 0);
  std::vector<double> utility;
  for (std::size_t i = 0; i < 16; ++i) {  // window 4
    double best = 0;
    for (std::size_t r = i + 4; r < 24; ++r) best = std::max({best, a[0][r][i], a[1][r][i]});
    utility.push_back(best);
  }
  const auto d = deaths(test::make_trace(spec), "write_gate(gate=oracle,rate=50%,window=4)");
  std::vector<double> sorted = utility;
  std::sort(sorted.rbegin(), sorted.rend());
  for (std::size_t i = 0; i < 16; ++i) CHECK((d[i] > 20) == (utility[i] > sorted[8]));
}

TEST_CASE("the gates' bytes are those of the published models", "[policy][write_gate]") {
  struct Row {
    const char* model;
    const char* hidden;
    std::int64_t parameters;
    const char* mib;
  };
  for (const Row& row :
       {Row{"Llama-3.1-8B", "4", 33825024, "64.52"}, Row{"Qwen3-4B", "1.5", 14275872, "27.23"}}) {
    const Geometry g = geometry_of(load_model(row.model), 1000, 24, 0, 2);
    const Policy policy = make_policy(fmt::format("write_gate(hidden={})", row.hidden), g);
    const std::int64_t heads = std::int64_t{g.layers()} * 8;
    CHECK(policy.charge.once == 2 * row.parameters + 4 * heads * 64 + heads * 256);
    CHECK(fmt::format("{:.2f}", static_cast<double>(2 * row.parameters) / 1048576) == row.mib);
    CHECK_FALSE(policy.closed_form);
  }
}

TEST_CASE("the full cache of the published memory figure is pool plus block table",
          "[policy][write_gate][analytic]") {
  // MiB at 100,000 to 500,000 prompt tokens and 300 generated ones, blocks of 16; the table is sized
  // for 1,000 more tokens than the prompt.
  struct Row {
    const char* model;
    std::vector<double> mib;
  };
  for (const Row& row : {Row{"Llama-3.1-8B", {12544.17, 25050.27, 37556.37, 50062.48}},
                         Row{"Qwen3-4B", {14112.19, 28181.55, 42250.92, 56320.29, 70389.65}}}) {
    for (std::size_t i = 0; i < row.mib.size(); ++i) {
      const auto prompt = static_cast<std::int64_t>(i + 1) * 100000;
      const Geometry g = geometry_of(load_model(row.model), prompt, 300, 0, 2);
      Accounting paged;
      paged.layout = "paged16_per_head_compact";
      const std::int64_t pool = predict(make_policy("full", g), g, paged).peak_bytes.kv;
      const Geometry longer = geometry_of(load_model(row.model), prompt, 1000, 0, 2);
      const std::int64_t table = make_policy("write_gate(gate=random)", longer).charge.once -
                                 std::int64_t{g.layers()} * 8 * 256;
      INFO(row.model << " " << prompt);
      CHECK(static_cast<double>(pool + table) / 1048576 == Approx(row.mib[i]).margin(0.0051));
    }
  }
}

TEST_CASE("the cap drops a tenth of every head's entries beyond the window",
          "[policy][write_gate]") {
  // Everything is admitted; window 4. Prompt 30: 26 beyond it > 10, so 2 leave; then each row adds
  // one and 2 leave of 25, 24, ...: 24, 23 - 2 of 25 = 23, 22, 21.
  const Trace trace = random_trace(34, 30, 6);
  const RunResult run =
      test::run_one(trace, "write_gate(gate=random,rate=100%,window=4,cap=10)", {});
  for (int l = 0; l < 2; ++l) {
    for (int h = 0; h < 2; ++h) {
      const auto span = run.ledger.deaths(l, h);
      const std::vector<int> d(span.begin(), span.end());
      CHECK(alive_after(d, 30) == 4 + 24);
      CHECK(alive_after(d, 31) == 4 + 23);
      CHECK(alive_after(d, 32) == 4 + 22);
      for (std::size_t t = 26; t < 30; ++t) CHECK(d[t] > 30);
    }
  }
  CHECK(deaths(trace, "write_gate(gate=random,rate=100%,window=4,cap=40)") ==
        std::vector<int>(34, 34));
}

TEST_CASE("write_gate composes with a post-fill eviction", "[policy][write_gate]") {
  const Trace trace = random_trace(60, 50, 6);
  const RunResult run = test::run_one(
      trace, "write_gate(gate=oracle,rate=50%,window=8)+snapkv(budget=12,window=4)", {});
  for (int l = 0; l < 2; ++l) {
    for (int h = 0; h < 2; ++h) {
      const auto d = run.ledger.deaths(l, h);
      CHECK(alive_after({d.begin(), d.end()}, 50) <= 12);
    }
  }
  CHECK(make_policy("write_gate(gate=oracle)+snapkv", geometry_of(trace, {})).bound);
}

TEST_CASE("write_gate refuses what has no meaning", "[policy][write_gate]") {
  const Geometry g = geometry_of(random_trace(20, 16, 1), {});
  CHECK_THROWS_WITH(make_policy("write_gate(tau=0.1,rate=20%)", g), Contains("either tau or rate"));
  CHECK_THROWS_WITH(make_policy("write_gate(rate=20)", g), Contains("expected a share"));
  CHECK_THROWS_AS(make_policy("write_gate(rate=120%)", g), ConfigError);
  CHECK_THROWS_AS(make_policy("write_gate(gate=oracle,weights=x)", g), ConfigError);
  CHECK_THROWS_AS(make_policy("write_gate(gate=random,tau=0.5)", g), ConfigError);
  CHECK_THROWS_AS(make_policy("write_gate(gate=file)", g), ConfigError);
  CHECK_THROWS_AS(make_policy("write_gate+write_gate", g), ConfigError);
}

// ---- judgeq --------------------------------------------------------------------------------------

TEST_CASE("judgeq keeps what its queries attend to", "[policy][judgeq]") {
  // All queries are 1, so every centre is 1 and an entry's score grows with its key.
  const Trace trace = weights({0, 3, 1, 2, 0, 9}, 5);
  CHECK(deaths(trace, "judgeq(budget=2)") == std::vector<int>{5, 6, 5, 6, 5, 6});
  CHECK(deaths(trace, "judgeq(budget=2,window=1)") == std::vector<int>{5, 6, 5, 5, 6, 6});
  // Pooling by 3 lifts the neighbours 0 and 2 of key 1; ties go to the lower token.
  CHECK(deaths(trace, "judgeq(budget=2,pool=3)") == std::vector<int>{6, 6, 5, 5, 5, 6});
  // The decode row alone asks for the smallest keys.
  const Trace other = weights({0, 3, 1, 2, 0, 9}, 5, {1, 1, 1, 1, 1, -1});
  CHECK(deaths(other, "judgeq(budget=2,scorer=oracle)") == std::vector<int>{6, 5, 5, 5, 6, 6});
  CHECK(deaths(other, "judgeq(budget=2,scorer=static)") == std::vector<int>{5, 6, 5, 6, 5, 6});
  const Table file("scores", {1, 1, 6}, {1, 0, 5, 0, 2, 0});
  CHECK(deaths(trace, fmt::format("judgeq(budget=2,scorer=file,weights=\"{}\")", file.name())) ==
        std::vector<int>{5, 5, 6, 5, 6, 6});
}

TEST_CASE("judgeq rotates its queries to the positions after the prompt", "[policy][judgeq]") {
  // One pair of channels of one radian a position, the same query and key everywhere before rotary:
  // the logit of a query at p and a key at j is cos(p - j), largest for j = p, p - 6, p - 13, ...
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = 1;
  spec.meta.head_dim = 2;
  spec.meta.tokens = 20;
  spec.meta.prompt_tokens = 19;
  spec.meta.score_scale = 1;
  spec.meta.rope = Rope{};
  spec.meta.rope->dim = 2;
  spec.layers.push_back({});
  for (int r = 0; r < 20; ++r) {
    for (const double x : {std::cos(r), std::sin(r)}) {
      spec.layers[0].q.push_back(3 * x);
      spec.layers[0].k.push_back(x);
    }
  }
  const Trace trace = test::make_trace(spec);
  // One query at position 19: cos(19 - j) is largest at j = 13 (.960), then at 0 (.989): 0 and 13.
  std::vector<int> expected(20, 19);
  expected[0] = expected[13] = expected[19] = 20;
  for (const char* scorer : {"static", "ridge"})
    CHECK(deaths(trace, fmt::format("judgeq(budget=2,m=1,scorer={})", scorer)) == expected);
}

TEST_CASE("no query hits more of the answer's keys than the oracle", "[policy][judgeq]") {
  for (std::uint64_t seed = 1; seed < 6; ++seed) {
    const Trace trace = random_trace(70, 60, seed);
    const RunResult oracle = test::run_one(trace, "judgeq(scorer=oracle,budget=15)", {});
    for (const char* scorer : {"static", "ridge"}) {
      const RunResult run =
          test::run_one(trace, fmt::format("judgeq(scorer={},budget=15)", scorer), {});
      int hits = 0;
      for (std::size_t i = 0; i < run.ledger.death.size(); ++i)
        hits += run.ledger.death[i] > 60 && oracle.ledger.death[i] > 60 && i % 70 < 60 ? 1 : 0;
      CHECK(hits <= 4 * 15);
      CHECK(hits > 4 * 15 * 15 / 60);  // chance
      CHECK(run.fidelity->decode->mass_mean <= oracle.fidelity->decode->mass_mean);
    }
  }
}

TEST_CASE("judgeq charges its soft tokens, and their entries while they attend",
          "[policy][judgeq]") {
  const Geometry g = geometry_of(load_model("Llama-3.1-8B"), 1000, 24, 0, 2);
  const Policy policy = make_policy("judgeq(budget=100)", g);
  CHECK(policy.charge.once == 256 * 1024);
  CHECK(policy.charge.at(999) - policy.charge.once == 32 * 32 * 8 * g.entry_bytes());
  CHECK(policy.charge.at(998) == policy.charge.once);
  CHECK(policy.charge.at(1000) == policy.charge.once);
  CHECK_THROWS_WITH(make_policy("judgeq(pool=2)", g), Contains("nearest: 3"));
  CHECK_THROWS_AS(make_policy("judgeq(scorer=file)", g), ConfigError);
  CHECK_THROWS_AS(make_policy("judgeq(scorer=oracle,weights=x)", g), ConfigError);
}

// ---- locret --------------------------------------------------------------------------------------

TEST_CASE("locret lets all entries compete after every chunk, and spares the prompt's tail",
          "[policy][locret]") {
  // Chunks [0,4) [4,8), tail [8,10), 3 places, 1 stabilizer.
  //   at 4: 3 is safe, 0 (5) and 2 (2) stay, 1 goes.
  //   at 8, the last chunk: nobody is safe; 4 (9), 0 (5), 5 (3) stay.
  const Trace trace = weights(std::vector<double>(11, 0.0), 10);
  const Table file("scores", {1, 1, 11}, {5, 1, 2, 0, 9, 3, 0, .5, 0, 0, 0});
  EngineOptions options;
  options.chunk = 4;
  CHECK(deaths(trace,
               fmt::format("locret(budget=3,local=2,stabilizers=1,scorer=file,weights=\"{}\")",
                           file.name()),
               options) == std::vector<int>{11, 4, 8, 8, 11, 11, 8, 8, 11, 11, 11});
  // Without a tail the last chunk ends with the prompt: at 8 the stabilizer 7 pushes 5 out, and at 10
  // it stays by its score.
  CHECK(deaths(trace,
               fmt::format("locret(budget=3,local=0,stabilizers=1,scorer=file,weights=\"{}\")",
                           file.name()),
               options) == std::vector<int>{11, 4, 8, 8, 11, 8, 8, 11, 10, 10, 11});
}

TEST_CASE("locret's share of a budget is rounded up to 64 entries of the tokens so far",
          "[policy][locret]") {
  Geometry g = geometry_of(load_model("Llama-3.1-8B"), 1100, 10, 250, 2);
  const auto tokens = [&](const std::string& spec, RowIndex end) {
    Pass pass;
    pass.begin = 0;
    pass.end = end;
    pass.evict_at = pass.prompt_end = 1100;
    return make_policy(spec, g).rules.at(0).sizing(pass).tokens;
  };
  CHECK(tokens("locret(budget=30%,stabilizers=10)", 250) == 128);   // 75 -> 128
  CHECK(tokens("locret(budget=30%,stabilizers=10)", 500) == 192);   // 150 -> 192
  CHECK(tokens("locret(budget=30%,stabilizers=10)", 1000) == 320);  // 300 -> 320
  CHECK(tokens("locret(budget=30%,stabilizers=400)", 1000) == 400);
  CHECK(tokens("locret(budget=30%,stabilizers=10)", 1100) == kAll);  // the tail
  CHECK(tokens("locret(budget=77,stabilizers=10)", 500) == 77);
  // Retaining heads [4096 + 2 * 1024 -> 1024 -> 8] in 32 layers, and a score an entry.
  const Policy policy = make_policy("locret", g);
  CHECK(policy.charge.once == std::int64_t{2} * 32 * 1024 * (6144 + 8));
  CHECK(policy.charge.entry == 2);
  CHECK_THROWS_AS(make_policy("locret(scorer=file)", g), ConfigError);
  CHECK_THROWS_WITH(make_policy("locret(budget=1B)", g),
                    Contains("locret: budget=1B is less than one entry a head"));
  CHECK_THROWS_AS(make_policy("chunked(locret)", g), ConfigError);
}

TEST_CASE("replay equals the closed forms of the fitted policies", "[policy][analytic]") {
  test::Random random(5);
  for (int round = 0; round < 20; ++round) {
    const int prompt = test::pick(random, 1, 70);
    const int generated = test::pick(random, 0, 20);
    const Trace trace = random_trace(prompt + generated, prompt, random());
    EngineOptions options;
    options.chunk = test::pick(random, 0, 30);
    const int budget = test::pick(random, 1, 60);
    for (const std::string& spec :
         {fmt::format("foresightkv(budget={},interval={})", budget, test::pick(random, 1, 9)),
          fmt::format("judgeq(budget={},window={},m=3)", budget, test::pick(random, 0, 9)),
          fmt::format("locret(budget={},local={},stabilizers={})", budget,
                      test::pick(random, 0, 20), test::pick(random, 0, 30)),
          fmt::format("locret(budget={}%,local={})", budget, test::pick(random, 0, 20))}) {
      INFO(spec << " n=" << prompt << " m=" << generated << " C=" << options.chunk);
      CHECK(test::off_closed_form(trace, spec, options) == "");
    }
  }
}

TEST_CASE("the metric's Locret head is the one of arXiv 2506.17121", "[analytic][locret]") {
  const HeadArea head = locret_head(131072, 128, 32768, 0.7, 100, 2500);
  const FootprintAndPeak got = mixed(head, head, 0, 131072, 128);
  CHECK(fmt::format("{:.10f} {:.10f}", got.footprint, got.peak) == "0.5316757513 0.5309298780");
  // A prompt within the tail is one chunk, kept whole.
  CHECK(locret_head(8, 2, 4, 0.5, 10, 0).peak_points == std::vector<std::int64_t>{8, 6});
}

TEST_CASE("bounds keep more of the future than what is fitted", "[policy][fitted]") {
  double golden = 0, fitted = 0, control = 0;
  for (std::uint64_t seed = 1; seed < 6; ++seed) {
    const Trace trace = random_trace(100, 80, seed);
    const auto mass = [&](const std::string& spec) {
      return test::run_one(trace, spec, {}).fidelity->decode->mass_mean;
    };
    golden += mass("foresightkv(scorer=golden,budget=20,interval=5)");
    fitted += mass("foresightkv(scorer=ridge,select=topk,budget=20,interval=5)");
    control += mass("random(budget=20)");
    CHECK(mass("write_gate(gate=oracle,rate=25%,window=8)") >
          mass("write_gate(gate=random,rate=25%,window=8)"));
  }
  CHECK(golden > fitted);
  CHECK(golden > control);
}
