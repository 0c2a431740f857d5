// SPDX-License-Identifier: Apache-2.0
// Stores that merge what another policy evicts, keys and all: worked examples by hand.
#include <cmath>
#include <memory>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/policy/registry.h"
#include "tests/support/cases.h"
#include "tests/support/tiny_view.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::TinyView;

namespace {

using Values = std::vector<float>;

std::unique_ptr<Store> store_of(const std::string& policy, const View& view) {
  const LayerShape& shape = view.shape();
  Geometry g;
  g.model_layers = 1;
  g.layer_ids = {0};
  g.query_heads = shape.query_heads;
  g.kv_heads = shape.kv_heads;
  g.k_dim = shape.k_dim;
  g.v_dim = shape.v_dim;
  g.tokens = g.prompt = g.evict_point = 8;
  return make_policy("h2o(budget=1)+" + policy, g).store(shape);
}

// What the store decides when these tokens of the heads leave at the end of the view's pass.
Decision take_out(Store& store, const View& view,
                  const std::vector<std::pair<int, TokenIndex>>& victims) {
  Decision out;
  for (const auto& [head, token] : victims) out.evictions.push_back({head, token, 0, 0});
  store.age(view, out);
  return out;
}

// The pass of one more row.
Pass one_more(RowIndex end) { return {end - 1, end, 1, 1, {}}; }

void check_rewrite(const Decision& d, TokenIndex token, const std::vector<double>& k,
                   const std::vector<double>& v, int head = 0) {
  INFO("token " << token << " of " << d.rewrites.size() << " rewrites");
  for (const Rewrite& r : d.rewrites) {
    if (r.token != token || r.kv_head != head) continue;
    for (std::size_t i = 0; i < k.size(); ++i) CHECK(r.k[i] == Approx(k[i]).epsilon(1e-3));
    for (std::size_t i = 0; i < v.size(); ++i) CHECK(r.v[i] == Approx(v[i]).epsilon(1e-3));
    return;
  }
  FAIL("not rewritten");
}

double error_in_decode(const Trace& trace, const std::string& policy) {
  return test::run_one(trace, policy, {}).fidelity->decode->error_mean;
}

std::vector<std::vector<RowIndex>> all_deaths(const Trace& trace, const std::string& policy) {
  const RunResult run = test::run_one(trace, policy, {});
  std::vector<std::vector<RowIndex>> out;
  for (int l = 0; l < run.ledger.layers; ++l) {
    for (int h = 0; h < run.ledger.heads; ++h) {
      const auto deaths = run.ledger.deaths(l, h);
      out.emplace_back(deaths.begin(), deaths.end());
    }
  }
  return out;
}

// Equal keys: whatever stands for all victims by number stands for them exactly.
Trace all_keys_equal() {
  return test::weights(std::vector<double>(12, 0.5), 8, {}, {1, 7, -3, 2, 5, 1, 8, 2, 0, 4, 9, -6});
}

}  // namespace

TEST_CASE("stores that merge change no lifetime", "[policy]") {
  const Trace trace = test::random_trace(40, 30, 6);
  for (const char* store : {"d2o", "keepkv", "momentkv"}) {
    for (const char* evictor : {"h2o(budget=10)", "snapkv(budget=9,window=4)"}) {
      const std::string policy = fmt::format("{}+{}", evictor, store);
      INFO(policy);
      CHECK(all_deaths(trace, policy) == all_deaths(trace, evictor));
      CHECK(error_in_decode(trace, policy) != error_in_decode(trace, evictor));
    }
    CHECK_THROWS_WITH(test::run_one(trace, store, {}), Contains("it merges what another policy"));
  }
}

// ---- momentkv -----------------------------------------------------------------------------------

TEST_CASE("momentkv adds its victims to first order about their mean key", "[policy][momentkv]") {
  // Keys 0 and 2, values 1 and 3: means 1 and 2, covariance 1. A row with q = 1/2 and maximum 1/4
  // adds 2 exp(1/2 - 1/4) of weight, and (2 + 1/2) times that of value.
  const TinyView view({{0}, {5}, {2}, {9}}, {{1}, {0}, {3}, {0}});
  const auto store = store_of("momentkv", view);
  CHECK_FALSE(store->adds_output());
  (void)take_out(*store, view, {{0, 0}, {0, 2}});
  REQUIRE(store->adds_output());
  std::vector<double> numerator = {10};
  double denominator = 1;
  store->add_output(0, Values{0.5F}, 0.25, numerator, denominator);
  CHECK(denominator == Approx(1 + 2 * std::exp(0.25)));
  CHECK(numerator[0] == Approx(10 + 5 * std::exp(0.25)));
}

TEST_CASE("momentkv's covariance turns values by the query", "[policy][momentkv]") {
  // Keys (1, 0) and (0, 1), values (1, 0) and (0, 2), q = (1, -1): to first order about the mean
  // key weights are 1 + 1 and 1 - 1.
  const TinyView view({{1, 0}, {0, 1}, {0, 0}}, {{1, 0}, {0, 2}, {0, 0}});
  const auto store = store_of("momentkv", view);
  (void)take_out(*store, view, {{0, 0}});
  (void)take_out(*store, view, {{0, 1}});  // one after the other
  std::vector<double> numerator = {0, 0};
  double denominator = 0;
  store->add_output(0, Values{1, -1}, 0, numerator, denominator);
  CHECK(denominator == Approx(2));
  CHECK(numerator[0] == Approx(2));
  CHECK(numerator[1] == Approx(0).margin(1e-9));
}

TEST_CASE("momentkv errs by the square of how far keys lie apart", "[policy][momentkv]") {
  const auto error = [](float apart) {
    const TinyView view({{1 - apart}, {1 + apart}, {0}}, {{-2}, {4}, {0}});
    const auto store = store_of("momentkv", view);
    (void)take_out(*store, view, {{0, 0}, {0, 1}});
    std::vector<double> numerator = {0};
    double denominator = 0;
    store->add_output(0, Values{1}, 0, numerator, denominator);
    const double first = std::exp(static_cast<double>(1 - apart));
    const double second = std::exp(static_cast<double>(1 + apart));
    return std::abs(numerator[0] - (4 * second - 2 * first)) / (4 * second - 2 * first);
  };
  CHECK(error(0.2F) < 0.03);
  CHECK(error(0.2F) / error(0.1F) == Approx(4).epsilon(0.15));
  CHECK(error_in_decode(all_keys_equal(), "h2o(budget=4)+momentkv") < 1e-6);
  // Llama-3.1-8B: 32 layers of 8 heads of 1 + 128 + 128 + 128 x 128 numbers.
  CHECK(make_policy("snapkv(budget=512)+momentkv", test::llama_8b(4096, 1)).charge.once ==
        32LL * 8 * (1 + 256 + 16384) * 4);
}

// ---- d2o ----------------------------------------------------------------------------------------

TEST_CASE("d2o merges victims whose keys reach the mean cosine", "[policy][d2o]") {
  // Token 1: cosine .6 with 0 and .8 with 3; token 2: 1 with 0. Their mean, .9, is the threshold.
  TinyView view({{1, 0}, {3, 4}, {4, 0}, {0, 2}, {0, 1}}, {{1}, {5}, {2}, {7}, {3}});
  view.turn({0, 4, 4, 4, {}});
  const auto store = store_of("d2o", view);
  const Decision first = take_out(*store, view, {{0, 1}, {0, 2}});
  CHECK(first.rewrites.size() == 1);
  check_rewrite(first, 0, {2.5, 0}, {1.5});  // (1 + 4) / 2, (1 + 2) / 2
  // Token 3 lies along 4: 1 and .9 in equal parts, .95. (0, 1 + 2) / 2, (3 + 7) / 2.
  view.turn(one_more(5));
  view.kill(1);
  view.kill(2);
  const Decision second = take_out(*store, view, {{0, 3}});
  CHECK(second.rewrites.size() == 1);
  check_rewrite(second, 4, {0, 1.5}, {5});
  CHECK_FALSE(store->adds_output());
}

TEST_CASE("d2o's threshold moves by beta, and merged entries go on as they are held",
          "[policy][d2o]") {
  // First 2 goes into 0, cosine 1: (3, 0) and 4. Then 0, as it is held, has .6 with (3, 4):
  // with beta = .5 the threshold is .8, with 1 it is .6.
  const auto second = [](const char* policy) {
    TinyView view({{2, 0}, {3, 4}, {4, 0}, {0, 0}}, {{2}, {1}, {6}, {0}});
    view.turn({0, 3, 3, 3, {}});
    const auto store = store_of(policy, view);
    check_rewrite(take_out(*store, view, {{0, 2}}), 0, {3, 0}, {4});
    view.turn(one_more(4));
    view.kill(2);
    return take_out(*store, view, {{0, 0}});
  };
  CHECK(second("d2o").rewrites.empty());
  // (3 + .6 x 3) / 2, 4 / 2; (1 + .6 x 4) / 2.
  check_rewrite(second("d2o(beta=1)"), 1, {2.4, 2}, {1.7});
}

namespace {

// Another set of keys in a second head.
class TwoHeads final : public TinyView {
 public:
  TwoHeads(std::vector<Values> first, std::vector<Values> second)
      : TinyView(first, std::vector<Values>(first.size(), Values{1})), second_(std::move(second)) {
    shape_.heads = shape_.kv_heads = shape_.query_heads = 2;
  }
  Values key(int head, TokenIndex token) const override {
    return head == 0 ? TinyView::key(0, token) : second_[static_cast<std::size_t>(token)];
  }

 private:
  std::vector<Values> second_;
};

}  // namespace

TEST_CASE("d2o judges the i-th victims of all heads together", "[policy][d2o]") {
  // Cosines 1 and .6 in head 0, .28 and .96 in head 1: mean .71; first .64, second .78.
  const TwoHeads view({{1, 0}, {2, 0}, {3, 4}}, {{1, 0}, {7, 24}, {24, 7}});
  const auto store = store_of("d2o", view);
  const Decision d = take_out(*store, view, {{0, 1}, {0, 2}, {1, 1}, {1, 2}});
  CHECK(d.rewrites.size() == 2);
  check_rewrite(d, 0, {(1 + 0.6 * 3) / 2, 0.6 * 4 / 2}, {(1 + 0.6) / 2}, 0);
  check_rewrite(d, 0, {(1 + 0.96 * 24) / 2, 0.96 * 7 / 2}, {(1 + 0.96) / 2}, 1);
}

// ---- keepkv -------------------------------------------------------------------------------------

TEST_CASE("keepkv merges by votes and by what the last rows give", "[policy][keepkv]") {
  // The last row gives exp(ln 2) = 2 to token 0 and 4 to token 2, which has 0's direction.
  const float two = std::log(2.0F);
  TinyView view({{1, 0}, {0, 1}, {2, 0}, {3, 0}}, {{2}, {8}, {5}, {1}},
                {{9, 9}, {9, 9}, {two, 0}, {0, 0}});
  view.turn({0, 3, 3, 3, {}});
  const auto store = store_of("keepkv(window=1)", view);
  const Decision first = take_out(*store, view, {{0, 2}});
  CHECK(first.rewrites.size() == 1);
  check_rewrite(first, 0, {(2.0 * 1 + 4.0 * 2) / 6, 0}, {(2.0 * 2 + 4.0 * 5) / 6});
  // Two votes: once by itself, once more by the store.
  std::vector<double> numerator = {0};
  double denominator = 0;
  store->add_output(0, Values{1, 0}, 1, numerator, denominator);
  const double more = std::exp(10.0 / 6 - 1);
  CHECK(denominator == Approx(more).epsilon(1e-3));
  CHECK(numerator[0] == Approx(4 * more).epsilon(1e-3));
  // A row that gives 1 to all: token 0, of two votes, goes into token 3.
  view.turn(one_more(4));
  view.kill(2);
  const Decision second = take_out(*store, view, {{0, 0}});
  check_rewrite(second, 3, {(2 * 10.0 / 6 + 3) / 3, 0}, {(2 * 4.0 + 1) / 3});
  numerator = {0};
  denominator = 0;
  store->add_output(0, Values{0, 0}, 0, numerator, denominator);
  CHECK(denominator == Approx(2));  // three votes; token 0 is gone
  CHECK(numerator[0] == Approx(2 * 3).epsilon(1e-3));
}

TEST_CASE("keepkv loses what is like nothing that stays", "[policy][keepkv]") {
  const TinyView view({{1, 0}, {1, 1}, {0, 0}}, {{2}, {8}, {0}},
                      std::vector<Values>(3, Values{0, 0}));
  const auto lost = store_of("keepkv", view);  // cosine .71
  CHECK(take_out(*lost, view, {{0, 1}}).rewrites.empty());
  CHECK_FALSE(lost->adds_output());
  const auto merged = store_of("keepkv(threshold=0.7)", view);
  check_rewrite(take_out(*merged, view, {{0, 1}}), 0, {1, 0.5}, {5});
}

TEST_CASE("keepkv weighs an entry by the rows that could see it", "[policy][keepkv]") {
  // Rows 1 and 2 are the window. Token 0 is given 1 and 1, token 2, by row 2 alone, 1.
  const TinyView view({{1, 0}, {0, 1}, {1, 0}}, {{2}, {8}, {6}},
                      std::vector<Values>(3, Values{0, 0}));
  const auto store = store_of("keepkv(window=2)", view);
  check_rewrite(take_out(*store, view, {{0, 0}}), 2, {1, 0}, {4});
}

TEST_CASE("keepkv keeps the attention of equal keys", "[policy][keepkv]") {
  CHECK(error_in_decode(all_keys_equal(), "h2o(budget=4)") > 0.05);
  CHECK(error_in_decode(all_keys_equal(), "h2o(budget=4)+keepkv") < 1e-6);
  CHECK(error_in_decode(all_keys_equal(), "snapkv(budget=4,window=2)+keepkv") < 1e-6);
  // A vote, and a number for each row.
  CHECK(make_policy("snapkv(budget=512)+keepkv(window=8)", test::llama_8b(4096, 1)).charge.entry ==
        4 + 8 * 4);
}
