// SPDX-License-Identifier: Apache-2.0
// Budgets that heads share: worked examples, small enough to check by hand.
#include <algorithm>
#include <cmath>
#include <numeric>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/predict/analytic.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"
#include "tests/support/files.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::capacities;
using test::Folder;
using test::geometry;
using test::head_weights;
using test::kept;
using test::kept_sizes;
using test::random_heads;

namespace {

using Tokens = std::vector<int>;

}  // namespace

// ---- adakv --------------------------------------------------------------------------------------

TEST_CASE("adakv gives places to the head whose candidates win the layer's list",
          "[policy][adakv]") {
  // Seven prompt tokens, window 1: candidates 0 .. 5. Head 0 has one peak (0.96, then 0.0065 each),
  // head 1 is flat (1/7 each). B = 4: b = 3, six places: head 0 wins one, head 1 five.
  const Trace trace = head_weights({{{5, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}}}, 7);
  const auto run = [&](const char* more, int head) {
    return kept(trace, fmt::format("adakv(budget=4,window=1,kernel=1,{})", more), 0, head);
  };
  CHECK(run("alpha=0", 0) == Tokens{0, 6});
  CHECK(run("alpha=0", 1) == Tokens{0, 1, 2, 3, 4, 6});
  // alpha .2: round(.8 * 1 + 0) = 1 and round(.8 * 5 + 0) = 4.
  CHECK(run("alpha=0.2", 0) == Tokens{0, 6});
  CHECK(run("alpha=0.2", 1) == Tokens{0, 1, 2, 3, 6});
  // alpha .5: floor(1.5) = 1; round(1.5) = 2 and round(3.5) = 4, half to even.
  CHECK(run("alpha=0.5", 0) == Tokens{0, 1, 6});
  CHECK(run("alpha=0.5", 1) == Tokens{0, 1, 2, 3, 6});
  // alpha 1: the uniform base.
  CHECK(run("alpha=1", 0) == Tokens{0, 1, 2, 6});
  CHECK(run("alpha=1", 1) == Tokens{0, 1, 2, 6});
  // A layer that is skipped is shared evenly.
  CHECK(run("alpha=0,skip=1", 0) == Tokens{0, 1, 2, 6});
  CHECK(run("alpha=0,skip=1", 1) == Tokens{0, 1, 2, 6});
}

TEST_CASE("adakv in the form of kvpress keeps the safe ones of each head, then the layer's best",
          "[policy][adakv]") {
  const Trace trace = head_weights({{{5, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}}}, 7);
  const auto run = [&](const char* alpha, int head) {
    return kept(trace,
                fmt::format("adakv(budget=4,window=1,kernel=1,form=kvpress,alpha={})", alpha), 0,
                head);
  };
  // int(.5 * 4) = 2 safe: the window's token and one candidate; six places less two go to head 1.
  CHECK(run("0.5", 0) == Tokens{0, 6});
  CHECK(run("0.5", 1) == Tokens{0, 1, 2, 3, 4, 6});
  // int(.75 * 4) = 3 safe: two candidates of each head; the last two places go to head 1.
  CHECK(run("0.75", 0) == Tokens{0, 1, 6});
  CHECK(run("0.75", 1) == Tokens{0, 1, 2, 3, 6});
}

TEST_CASE("adakv with normalize weighs a head by the share of its best", "[policy][adakv]") {
  // Head 0 has weights 8, 2.5 (five times) and 1 in the window, sum 21.5: .372, then .116. Head 1:
  // 1/7 = .143. Unweighted, head 1 wins five of six places. The best three hold (8 + 5) / 20.5 =
  // .634 of head 0 and 1/2 of head 1: .074 against .071, and head 0 wins all six.
  const double t = std::log(2.5);
  const Trace trace =
      head_weights({{{std::log(8.0), t, t, t, t, t, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}}}, 7);
  CHECK(kept_sizes(trace, "adakv(budget=4,window=1,kernel=1,alpha=0)") ==
        std::vector<std::size_t>{2, 6});
  CHECK(kept_sizes(trace, "adakv(budget=4,window=1,kernel=1,alpha=0,normalize=true)") ==
        std::vector<std::size_t>{7, 1});
}

TEST_CASE("adakv's counts sum up to the layer's budget", "[policy][adakv]") {
  const Trace trace = random_heads(70, 60, 8, 4);
  for (const int budget : {5, 12, 33}) {
    for (const int window : {1, 4}) {
      const auto total = [&](const std::string& more, int layer) {
        const auto all = kept_sizes(
            trace, fmt::format("adakv(budget={},window={},kernel=3,{})", budget, window, more));
        return std::accumulate(all.begin() + layer * 4, all.begin() + layer * 4 + 4,
                               std::size_t{0});
      };
      const auto exact = static_cast<std::size_t>(4 * budget);
      for (const int layer : {0, 1}) {
        INFO(budget << " " << window << " " << layer);
        CHECK(total("alpha=0", layer) == exact);
        CHECK(total("alpha=0.2,form=kvpress", layer) == exact);
        CHECK(total("alpha=0.9,form=kvpress", layer) == exact);
        // The floor of the safeguard cuts off less than one, rounding up to a half of each head.
        CHECK(total("alpha=0.3", layer) <= exact + 2);
        CHECK(total("alpha=0.3", layer) >= exact - 6);
      }
    }
  }
}

TEST_CASE("adakv charges four bytes a head, and holds everything when all fits",
          "[policy][adakv]") {
  const Trace trace = random_heads(30, 20, 4, 2);
  CHECK(test::run_one(trace, "adakv(budget=5)", {}).metrics.peak_bytes.overhead == 4 * 2 * 2);
  CHECK(test::run_one(trace, "adakv(budget=5,group=none)", {}).metrics.peak_bytes.overhead ==
        4 * 2 * 4);
  CHECK(kept_sizes(trace, "adakv(budget=20,alpha=0.9)") == std::vector<std::size_t>(4, 20));
  CHECK_FALSE(make_policy("adakv(budget=5)", geometry_of(trace, {})).closed_form);
  // Without a trace the heads share evenly: the sum is that of the replay.
  Geometry g = geometry_of(trace, {});
  g.trace = nullptr;
  const std::string whole = "adakv(budget=9,window=4,form=kvpress)";
  CHECK(predict(make_policy(whole, g), g, {}).entry_rows ==
        test::run_one(trace, whole, {}).metrics.entry_rows);
  CHECK_THAT(make_policy(whole, g).notes.front(), Contains("evenly here"));
}

TEST_CASE("adakv shapes the scores of other policies, alone and in chunks", "[policy][adakv]") {
  const Trace trace = random_heads(70, 60, 4, 2);
  EngineOptions chunks;
  chunks.chunk = 20;
  const auto deaths = [&](const std::string& policy, const EngineOptions& options) {
    return test::run_one(trace, policy, options).ledger.death;
  };
  const std::string votes = "budget=30%,window=4,kernel=3";
  CHECK(deaths(fmt::format("adakv({})", votes), {}) ==
        deaths(fmt::format("adakv(window=4)+snapkv({})", votes), {}));
  CHECK(deaths(fmt::format("chunked(adakv({}))", votes), chunks) ==
        deaths(fmt::format("chunked(adakv+snapkv({}))", votes), chunks));
  // Per chunk of 20: 6 + 4 entries a head, 20 in the layer, so 12 candidates of two heads.
  const RunResult run =
      test::run_one(trace, "chunked(adakv(alpha=0,budget=30%,window=4,kernel=3))", chunks);
  for (int l = 0; l < 2; ++l) {
    std::size_t alive = 0;
    for (int h = 0; h < 2; ++h) {
      for (const int t : kept(run, l, h)) alive += t < 20 ? 1 : 0;
    }
    CHECK(alive == 20);
  }
  CHECK_NOTHROW(deaths("chunked(adakv(budget=10%))", chunks));
  CHECK_NOTHROW(deaths("chunked(adakv+snapkv(budget=10%))", chunks));
  CHECK_NOTHROW(deaths("adakv+h2o(budget=12)", {}));
}

TEST_CASE("adakv compresses a prompt of exactly its budget, too", "[policy][adakv]") {
  // Base 3, all three candidates of a head win: round(3 x .8 + floor(.2 x 3)) = 2.
  const std::string spec = "adakv(budget=35,window=32,kernel=1,alpha=0.2";
  CHECK(kept_sizes(random_heads(36, 35, 4, 2), spec + ")") == std::vector<std::size_t>(4, 34));
  CHECK(kept_sizes(random_heads(36, 35, 4, 2), spec + ",form=kvpress)") ==
        std::vector<std::size_t>(4, 35));
  CHECK(kept_sizes(random_heads(35, 34, 4, 2), spec + ")") == std::vector<std::size_t>(4, 34));
}

TEST_CASE("pyramid+adakv is Ada-PyramidKV: the layer's base, then the heads", "[policy][adakv]") {
  const auto sums = [](const Trace& trace, const std::string& spec) {
    const auto all = kept_sizes(trace, spec);
    std::vector<std::size_t> out;
    for (std::size_t l = 0; l < all.size(); l += 2) out.push_back(all[l] + all[l + 1]);
    return out;
  };
  // Base 16: at most 32, at least 16 // 20 = 0, in steps of 32 // 3 = 10: 32 22 12 2, plus 4.
  const Trace trace = random_heads(110, 100, 4, 2, 4);
  const std::string spec = "adakv(budget=20,window=4,kernel=3,alpha=0)";
  CHECK(sums(trace, "pyramid+" + spec) == std::vector<std::size_t>{72, 52, 32, 12});
  CHECK(sums(trace, spec + "+pyramid") == std::vector<std::size_t>{72, 52, 32, 12});
  // The window is that of the votes, adakv's 32 here: base 8, so 16 11 6 1, plus 32.
  CHECK(sums(trace, "pyramid+adakv(budget=40,alpha=0)") ==
        std::vector<std::size_t>{96, 86, 76, 66});
  CHECK(sums(trace, "adakv(alpha=0)+pyramidkv(budget=40)") ==
        std::vector<std::size_t>{96, 86, 76, 66});
  // The safeguard is of the layer's own base: round(c x .5 + floor(.5 x 32)).
  const auto half = kept_sizes(trace, "pyramid+adakv(budget=20,window=4,kernel=3,alpha=0.5)");
  for (const std::size_t h : {0U, 1U}) CHECK(half[h] >= 16 + 4);
  // A budget above half of the prompt: 36 is all that a layer has, 52 - 36 = 16 the least, steps of
  // 20 // 3 = 6. PyramidKV's own program gives every layer 26 then.
  const Trace small = random_heads(50, 40, 4, 2, 4);
  CHECK(sums(small, "pyramid+adakv(budget=30,window=4,kernel=3,alpha=0)") ==
        std::vector<std::size_t>{80, 68, 56, 44});
  CHECK(sums(small, "pyramid(window=4)+snapkv(budget=30,window=4,kernel=3)") ==
        std::vector<std::size_t>(4, 60));
  // A prompt below the budget: layer 0's base is all 18 candidates of a head, and it keeps
  // round(18 x .8 + floor(.2 x 18)) = 17 and the window; no other layer compresses.
  const Trace shorter = random_heads(30, 22, 4, 2, 4);
  const std::string all = "pyramid+adakv(budget=30,window=4,kernel=3,alpha=0.2";
  CHECK(sums(shorter, all + ")") == std::vector<std::size_t>{42, 44, 44, 44});
  CHECK(sums(shorter, all + ",form=kvpress)") == std::vector<std::size_t>(4, 44));
}

TEST_CASE("adakv refuses what leaves it no choice between heads", "[policy][adakv]") {
  const Geometry g = geometry(2, 4, 2, 40);
  CHECK_THROWS_WITH(make_policy("adakv+tova(budget=10)", g),
                    Contains("tova ranks one set for all heads of a layer"));
  CHECK_THROWS_WITH(make_policy("pyramid+headkv(budget=10)", g),
                    Contains("both bring their own budget shape"));
  CHECK_THROWS_WITH(make_policy("adakv+chunkkv(budget=10)", g),
                    Contains("both bring their own budget shape"));
  CHECK_THROWS_WITH(make_policy("adakv(alpha=1.5)", g), Contains("expected 0 to 1"));
  CHECK_THROWS_WITH(make_policy("adakv(kernel=4)", g), Contains("nearest: 5"));
}

// ---- headkv -------------------------------------------------------------------------------------

TEST_CASE("headkv spreads one pool over all heads of all layers", "[policy][headkv]") {
  // B = 6, window 2: b = 4; beta 2: half of it, 2 a head, is pooled. Scores 3, 1, 0, 0 take 3, 1,
  // 0, 0 times 2 of the pool: 6 + 2, 2 + 2, 0 + 2, 0 + 2, each plus the window; 24 = 4 * 6.
  const Folder folder;
  const std::string file = folder.write("[[3, 1], [0, 0]]");
  const Trace trace = random_heads(40, 30, 4, 2);
  const auto text = [&](const std::string& more) {
    return fmt::format("headkv(budget=6,window=2,kernel=1,beta=2,heads=\"{}\"{})", file, more);
  };
  CHECK(kept_sizes(trace, text("")) == std::vector<std::size_t>{10, 6, 4, 4});
  CHECK(kept_sizes(trace, text(",temp=0")) == std::vector<std::size_t>(4, 6));
  // A larger beta shares less: floor(4 / 4) = 1 a head.
  const std::string less =
      fmt::format("headkv(budget=6,window=2,kernel=1,beta=4,heads=\"{}\")", file);
  CHECK(kept_sizes(trace, less) == std::vector<std::size_t>{8, 6, 5, 5});
  // Equal budgets are SnapKV.
  CHECK(test::run_one(trace, text(",temp=0"), {}).ledger.death ==
        test::run_one(trace, "snapkv(budget=6,window=2,kernel=1)", {}).ledger.death);
  CHECK(test::run_one(trace, text(""), {}).metrics.peak_bytes.overhead == 4 * 2 * 2);
  // Replay and closed form agree without a trace.
  const Geometry g = geometry_of(trace, {});
  Geometry blind = g;
  blind.trace = nullptr;
  CHECK(test::run_one(trace, text(""), {}).metrics.entry_rows ==
        predict(make_policy(text(""), blind), blind, {}).entry_rows);
  CHECK(make_policy(text(""), blind).closed_form);
  CHECK_FALSE(make_policy("headkv", blind).closed_form);
  CHECK_THAT(make_policy("headkv", g).notes.front(), Contains("stand-in"));
}

TEST_CASE("headkv takes scores of query heads, by group or apart", "[policy][headkv]") {
  // Query heads 3 1 | 0 0 in the first layer, 1 1 | 1 1 in the second: means 2, 0, 1, 1.
  const Folder folder;
  const std::string file = folder.write("[[3, 1, 0, 0], [1, 1, 1, 1]]");
  const Trace trace = random_heads(40, 30, 4, 2);
  const auto text = [&](const std::string& group) {
    return fmt::format("headkv(budget=6,window=2,kernel=1,beta=1,group={},heads=\"{}\")", group,
                       file);
  };
  CHECK(kept_sizes(trace, text("mean")) == std::vector<std::size_t>{10, 2, 6, 6});
  CHECK(kept_sizes(trace, text("none")) == std::vector<std::size_t>{14, 6, 2, 2, 6, 6, 6, 6});
  const std::string kv_heads = folder.write("[[3, 1], [0, 0]]");
  CHECK_THROWS_WITH(
      make_policy(fmt::format("headkv(group=none,heads=\"{}\")", kv_heads), geometry(2, 4, 2, 30)),
      Contains("expected 4 query heads"));
  const std::string negative = folder.write("[[3, 1], [0, -1]]");
  CHECK_THROWS_WITH(
      make_policy(fmt::format("headkv(heads=\"{}\")", negative), geometry(2, 4, 2, 30)),
      Contains("expected none below 0"));
  const std::string ragged = folder.write("[[3, 1], [0, 0, 0, 0]]");
  CHECK_THROWS_WITH(make_policy(fmt::format("headkv(heads=\"{}\")", ragged), geometry(2, 4, 2, 30)),
                    Contains("alike in every layer"));
}

TEST_CASE("headkv's budgets sum up to the uniform ones, up to rounding", "[policy][headkv]") {
  const Folder folder;
  std::string rows;
  for (int l = 0; l < 6; ++l) {
    rows += l == 0 ? "[" : ",";
    for (int h = 0; h < 8; ++h)
      rows += fmt::format("{}{}", h == 0 ? "[" : ",", 1 + std::sin(8 * l + h));
    rows += "]";
  }
  const std::string file = folder.write(rows + "]");
  const Geometry g = geometry(6, 8, 8, 4096);
  for (const char* beta : {"1.005", "1.2", "2", "10"}) {
    const auto all = capacities(
        make_policy(fmt::format("headkv(budget=128,beta={},heads=\"{}\")", beta, file), g), g);
    const TokenCount sum = std::accumulate(all.begin(), all.end(), TokenCount{0});
    CHECK(std::abs(sum - 48 * 128) <= 24);
    CHECK(*std::max_element(all.begin(), all.end()) > 128);
  }
}

TEST_CASE("headkv's pool is cut by Python's floor, and a prompt of its budget is compressed",
          "[policy][headkv]") {
  // Base 22, 22 // 1.1 = 19 (in doubles 22 / 1.1 is 20): a pool of 4 x 19, 3 for every head: 10.6,
  // 18.2, 25.8 and 33.4, plus the window of 8.
  const Folder folder;
  const std::string spec = fmt::format("headkv(budget=30,window=8,kernel=1,beta=1.1,heads=\"{}\")",
                                       folder.write("[[1, 2], [3, 4]]"));
  const std::vector<std::size_t> counts{19, 26, 34, 41};
  CHECK(kept_sizes(random_heads(60, 50, 4, 2), spec) == counts);
  CHECK(kept_sizes(random_heads(32, 30, 4, 2), spec) == std::vector<std::size_t>{19, 26, 30, 30});
  CHECK(kept_sizes(random_heads(32, 29, 4, 2), spec) == std::vector<std::size_t>(4, 29));
}

// ---- pyramid ------------------------------------------------------------------------------------

TEST_CASE("pyramid gives another policy the layer budgets of pyramidkv", "[policy][pyramid]") {
  const Trace trace = random_heads(60, 50, 4, 2, 4);
  CHECK(kept_sizes(trace, "pyramid(window=4)+snapkv(budget=12,window=4)") ==
        kept_sizes(trace, "pyramidkv(budget=12,window=4)"));
}

// ---- lukv ---------------------------------------------------------------------------------------

TEST_CASE("lukv gives heads what a curve says of the budget's percent", "[policy][lukv]") {
  const Folder folder;
  const std::string file = (folder.path / "curve.safetensors").string();
  const auto write = [&](const std::vector<double>& at_half) {  // shares of two heads that leave
    std::vector<double> curve(99 * 2, 0.1);
    std::copy(at_half.begin(), at_half.end(), curve.begin() + 49 * 2);
    test::write_tensors(file, {},
                        {{"curve", {Dtype::f32, {99, 1, 2}, test::encode(curve, Dtype::f32)}}});
  };
  const Trace trace =
      head_weights({{{9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0}, {9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0}}}, 10);
  const std::string half = "lukv(file=\"" + file + "\")+knorm(budget=5)";
  const auto sizes = [&](const std::string& policy) { return kept_sizes(trace, policy); };
  write({0.25, 0.75});
  // 7.5 and 2.5 of 10: 10 in all, and of equal fractions the first head's is rounded up.
  CHECK(sizes(half) == std::vector<std::size_t>{8, 2});
  write({0.25, 0.72});
  CHECK(sizes(half) == std::vector<std::size_t>{7, 3});  // 7.5, 2.8
  write({0, 1});
  CHECK(sizes(half) == std::vector<std::size_t>{10, 1});
  // 6 of 10 stay: the curve's 40 %, where a tenth leaves each head.
  CHECK(sizes("lukv(file=\"" + file + "\")+knorm(budget=6)") == std::vector<std::size_t>{9, 9});
  // 37 of 40 stay: 7.5 %, of which Python makes 8 and a difference of doubles would make 7.
  std::vector<double> curve(99 * 2, 0.1);
  std::fill_n(curve.begin() + 7 * 2, 2, 0.5);
  test::write_tensors(file, {},
                      {{"curve", {Dtype::f32, {99, 1, 2}, test::encode(curve, Dtype::f32)}}});
  const std::vector<double> keys(41, 1);
  CHECK(kept_sizes(head_weights({{keys, keys}}, 40),
                   "lukv(file=\"" + file + "\")+knorm(budget=37)") ==
        std::vector<std::size_t>{20, 20});
  // The smallest keys, between the first four and the newest.
  write({0.4, 0.4});
  CHECK(kept(trace, half) == Tokens{0, 1, 2, 3, 8, 9});
  // Beside what the scorer protects, its window of 3: of the others the largest key.
  write({0.2, 0.2});
  const std::vector<double> rising = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9};
  CHECK(kept(head_weights({{rising, rising}}, 10),
             "lukv(file=\"" + file + "\")+snapkv(budget=5,window=3,kernel=1)") ==
        Tokens{0, 1, 2, 3, 6, 7, 8, 9});
  CHECK(test::off_closed_form(trace, half, {}) == "");
  CHECK_THROWS_WITH(sizes("lukv(file=\"" + file + "\")"), Contains("it is a budget shape"));
  test::write_tensors(file, {},
                      {{"curve", {Dtype::f32, {1, 1, 2}, test::encode({0, 0}, Dtype::f32)}}});
  CHECK_THROWS_WITH(sizes(half), Contains("curve is [1, 1, 2], expected a tensor 'curve' [99, 1"));
}
