// SPDX-License-Identifier: Apache-2.0
// Methods of 2025 and 2026: worked examples, small enough to check by hand.
#include <algorithm>
#include <cmath>
#include <functional>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/base/random.h"
#include "sim/policies/turboquant_rule.h"
#include "sim/predict/analytic.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"
#include "tests/support/files.h"
#include "tests/support/twin_bridge.h"

using namespace kvspan;
using Catch::Matchers::Contains;
using test::column;
using test::deaths;
using test::kept;
using test::logits;
using test::one_head;
using test::refusal;
using test::Vectors;

namespace {

using Set = std::vector<int>;
using Rows = std::vector<int>;

// Queries of so many tokens.
Vectors ones(std::size_t tokens) { return Vectors(tokens, {1}); }

}  // namespace

// ---- triattention -------------------------------------------------------------------------------

TEST_CASE("triattention cuts when so many more than the budget are held",
          "[policy][triattention]") {
  // Nothing is rotated: the score is the mean query, 1, times the key. 5 are held after row 4, and
  // again after row 6.
  const Trace trace = one_head(column({5, 1, 4, 2, 3, 6, 0, 9}), 4, {}, ones(8));
  CHECK(deaths(trace, "triattention(budget=3,every=2)") == Rows{8, 5, 8, 5, 7, 8, 7, 8});
  CHECK(deaths(trace, "triattention(budget=3,every=9)") == Rows(8, 8));
  // The prompt stays: of rows 4 to 6 one has a place.
  CHECK(deaths(trace, "triattention(budget=5,every=2,prompt=stay)") ==
        Rows{8, 8, 8, 8, 7, 8, 7, 8});
  CHECK_THAT(refusal(trace, "triattention(budget=4,prompt=stay)"), Contains("nearest: budget=5"));
}

TEST_CASE("triattention may keep one set for all layers", "[policy][triattention]") {
  // Unrotated: a layer's scores are its keys, in standard deviations from their mean:
  //   1.41 -1.41 .71 -.71 0   and   -.60 -.53 -.47 2.00 -.40   sums .82 -1.95 .24 1.29 -.40
  const Trace trace = test::head_weights({{{5, 1, 4, 2, 3, 0}}, {{1, 2, 3, 40, 4, 0}}}, 4);
  const std::string policy = "triattention(budget=3,every=2,scope=";
  CHECK(deaths(trace, policy + "layer)", {}, 0) == Rows{6, 5, 6, 5, 6, 6});
  CHECK(deaths(trace, policy + "layer)", {}, 1) == Rows{5, 5, 6, 6, 6, 6});
  for (int l = 0; l < 2; ++l)
    CHECK(deaths(trace, policy + "model)", {}, l) == Rows{6, 5, 6, 6, 5, 6});
  CHECK(make_policy(policy + "model)", geometry_of(trace, {})).reads_trace);
}

TEST_CASE("triattention ranks equal keys by the cosines of their distance to rows to come",
          "[policy][triattention]") {
  // One pair of frequency 1. Before rotation all queries and keys are (1, 0), so the magnitudes say
  // nothing, and a key's score is the mean of cos(now - position + d) for d = 1, 2, 4, .. 65,536.
  test::TraceSpec spec;
  spec.meta.query_heads = spec.meta.kv_heads = 1;
  spec.meta.head_dim = 2;
  spec.meta.tokens = 9;
  spec.meta.prompt_tokens = 6;
  spec.meta.rope = Rope{10000.0, 2, false, {}};
  test::LayerSpec& layer = spec.layers.emplace_back();
  for (int t = 0; t < 9; ++t) {
    layer.q.insert(layer.q.end(), {std::cos(t), std::sin(t)});
    layer.k.insert(layer.k.end(), {std::cos(t), std::sin(t)});
  }
  std::vector<std::pair<double, int>> by_score;
  for (int t = 0; t < 7; ++t) {
    double sum = 0;
    for (int d = 1; d <= 65536; d *= 2) sum += std::cos(7 - t + d);
    by_score.emplace_back(-sum, t);
  }
  std::sort(by_score.begin(), by_score.end());
  const Trace trace = test::make_trace(spec);
  const auto died = deaths(trace, "triattention(budget=3,every=4)");
  for (std::size_t i = 0; i < by_score.size(); ++i)
    CHECK(died[static_cast<std::size_t>(by_score[i].second)] == (i < 3 ? 9 : 7));
  // A mean query and a magnitude of one pair, fp32.
  const RunResult run = test::run_one(trace, "triattention", {});
  CHECK(run.metrics.peak_bytes.overhead == 3 * 4);
}

TEST_CASE("triattention is calibrated on this prompt, or on another trace",
          "[policy][triattention]") {
  const test::Folder folder;
  // This prompt's queries point up, the other trace's down.
  const Trace trace = one_head(column({5, 1, 4, 2, 3, 6}), 4, {}, ones(6));
  test::TraceSpec other = test::weights_spec({0, 0, 0}, 3, {-1, -1, -1});
  const std::string file = (folder.path / "other.safetensors").string();
  test::write_trace(file, other);
  CHECK(deaths(trace, "triattention(budget=3,every=2)") == Rows{6, 5, 6, 5, 6, 6});
  CHECK(deaths(trace, "triattention(budget=3,every=2,calibration=\"" + file + "\")") ==
        Rows{5, 6, 5, 6, 6, 6});
  const Geometry g = geometry_of(trace, {});
  CHECK_THAT(make_policy("triattention", g).notes.front(), Contains("stand-in"));
  CHECK(make_policy("triattention(calibration=\"" + file + "\")", g).notes.size() == 1);
  CHECK_THAT(refusal(trace, "triattention(calibration=nothing)"), Contains("a trace that holds q"));
  other.meta.head_dim = 2;
  other.layers[0].q.assign(6, 1.0);
  other.layers[0].k.assign(6, 1.0);
  test::write_trace(file, other);
  CHECK_THAT(refusal(trace, "qfilter(calibration=\"" + file + "\")"), Contains("the head_dim"));
}

// ---- qfilter ------------------------------------------------------------------------------------

TEST_CASE("qfilter keeps keys along the direction of most queries", "[policy][qfilter]") {
  const Vectors keys = {{3, 0}, {1, 9}, {2, -9}, {-5, 1}, {0, 0}};
  const Trace right = one_head(keys, 4, {}, {{2, 0}, {2, 0}, {-1, 0}, {2, 0}, {0, 1}});
  CHECK(kept(right, "qfilter(budget=2)") == Set{0, 2});
  const Trace left = one_head(keys, 4, {}, {{-2, 0}, {-2, 0}, {1, 0}, {-2, 0}, {0, 1}});
  CHECK(kept(left, "qfilter(budget=2)") == Set{1, 3});
  CHECK(test::run_one(left, "qfilter(budget=2)", {}).metrics.peak_bytes.overhead == 2 * 2);
}

// ---- noncausal, leverage, compactor -------------------------------------------------------------

TEST_CASE("noncausal sums what the queries of a chunk attend to, later keys, too",
          "[policy][noncausal]") {
  // Chunks of two: 2 x (3/4, 1/4), then 2 x (1/2, 1/2); means of three neighbours, zeros outside:
  // .67, 1, .83, .67.
  const Vectors keys = column({std::log(3), 0, 0, 0, 0});
  CHECK(kept(one_head(keys, 4, ones(5), ones(5)), "noncausal(budget=2,chunk=2)") == Set{1, 2});
  // Values 1, 1, 1, 4: .67, 1, 1.83, 1.67.
  CHECK(kept(one_head(keys, 4, column({1, 1, 1, 4, 1}), ones(5)), "noncausal(budget=2,chunk=2)") ==
        Set{2, 3});
  // A last chunk of one is filled up: it gets 3/4 of its own query and 1/2 of the other one. Times
  // 1.3: .67, 1.21, .71; without them .67, 1.1, .6.
  const Vectors short_chunk = column({std::log(3), 0, std::log(3), 0});
  CHECK(kept(one_head(short_chunk, 3, column({1, 1, 1.3, 1}), ones(4)),
             "noncausal(budget=2,chunk=2)") == Set{1, 2});
}

TEST_CASE("leverage keeps the keys farthest from their mean", "[policy][leverage]") {
  // -3, -2, -1 and 6 from the mean.
  CHECK(kept(logits({0, 1, 2, 9, 0}, 4), "leverage(budget=2,sketch=0)") == Set{0, 3});
  // In one dimension a sketch scales all alike.
  CHECK(kept(logits({0, 1, 2, 9, 0}, 4), "leverage(budget=2,seed=5)") == Set{0, 3});
}

TEST_CASE("compactor blends attention and leverage, between its first and last tokens",
          "[policy][compactor]") {
  const Trace trace = one_head(column({std::log(3), 0, 0, 0, 0}), 4, ones(5), ones(5));
  const std::string compactor = "compactor(budget=2,chunk=2,sketch=0,sinks=0,recent=0,blending=";
  CHECK(kept(trace, compactor + "0)") == Set{1, 2});    // as noncausal
  CHECK(kept(trace, compactor + "100)") == Set{0, 1});  // as leverage; the rest tie
  CHECK(kept(trace, "compactor(budget=3,sinks=1,recent=2)") == Set{0, 2, 3});
  // auto: 1 - 2 / 4. Standardised: attention -.78, 1.31, .26, -.78; leverage 1.5, -.5, -.5, -.5.
  CHECK(kept(trace, "compactor(budget=2,chunk=2,sketch=0,sinks=0,recent=0)") == Set{1, 2});
  CHECK(kept(trace, compactor + "0.7)") == Set{0, 1});  // .27, .96, -.09, -1.13
}

// ---- cap ----------------------------------------------------------------------------------------

TEST_CASE("cap keeps values that add most, where their keys lie along the mean query",
          "[policy][cap]") {
  // Cosines 1, 1, 1 and -1: weights 1 and e^-10 = .000045, times 1, 9, 4, 81.
  const Trace trace = one_head(column({1, 1, 1, -1, 1}), 4, column({1, 3, 2, 9, 1}), ones(5));
  CHECK(kept(trace, "cap(budget=2,sinks=0)") == Set{1, 2});
  CHECK(kept(trace, "cap(budget=2,sinks=0,tau=0)") == Set{1, 3});
  CHECK(kept(trace, "cap(budget=2,sinks=1)") == Set{0, 1});
  // Three values say the same: 4 / 13 each; the fourth is alone: 1 / 2.
  const Trace alone =
      one_head(column({1, 1, 1, 1, 1}), 4, {{2, 0}, {2, 0}, {2, 0}, {0, 1}, {1, 1}}, ones(5));
  CHECK(kept(alone, "cap(budget=1,sinks=0)") == Set{3});
  CHECK(test::run_one(alone, "cap(budget=1,sinks=0)", {}).metrics.timeline.overhead_bytes[3] ==
        4 * (1 + 2 * 2));
}

// ---- lookahead ----------------------------------------------------------------------------------

TEST_CASE("lookahead lets the answer's rows vote for the prompt", "[policy][lookahead]") {
  // The last row of the prompt asks for large keys, the answer's two for small ones: key j has e^k
  // or e^-k of a row's attention. Window 1.
  const Trace trace =
      one_head(column({4, -4, 0, 1, 0, 0, 0}), 5, {}, column({1, 1, 1, 1, 1, -1, -1}));
  CHECK(kept(trace, "lookahead(budget=2,window=1,ahead=0,kernel=1)") == Set{0, 4});
  CHECK(kept(trace, "lookahead(budget=2,window=1,ahead=2,kernel=1,mask=causal)") == Set{1, 4});
  CHECK(kept(trace, "snapkv(budget=2,window=1,kernel=1)") == Set{0, 4});
  // Masked as the last three rows of five: token 3 is hidden from the first two of them. It is
  // worth most here, to the prompt's row; the answer's second row alone sees it.
  const Trace late = one_head(column({0, 0, 1, 9, 0, 0, 0}), 5, {}, column({1, 1, 1, 1, 1, 0, 0}));
  CHECK(kept(late, "lookahead(budget=2,window=1,ahead=2,kernel=1,mask=causal)") == Set{3, 4});
  CHECK(kept(late, "lookahead(budget=2,window=1,ahead=2,kernel=1)") == Set{2, 4});
  const RunResult run = test::run_one(late, "lookahead(budget=2,window=1,ahead=2)", {});
  CHECK(make_policy("lookahead", geometry_of(late, {})).bound);
  CHECK(run.metrics.timeline.overhead_bytes[4] == (2 + 2) * 4);  // the draft's cache
  CHECK(run.metrics.timeline.overhead_bytes[5] == 0);
}

// ---- finch --------------------------------------------------------------------------------------

TEST_CASE("finch lets the question's rows vote, each times its index", "[policy][finch]") {
  // Rows 4 and 5 are the question. Row 4 gives .94 to token 1. Row 5 asks for small keys, and gives
  // .40 to token 2 and .15 to each of 0, 3, 4 and 5. Times 4 and 5: 3.8, 2.0, .8 for 0 and 3.
  test::TraceSpec spec = test::weights_spec({0, 4, -1, 0, 0, 0, 0}, 6, {1, 1, 1, 1, 1, -1, 1});
  spec.meta.spans = {{"question", 4, 6}};
  const Trace trace = test::make_trace(spec);
  CHECK(kept(trace, "finch(budget=3)") == Set{1, 4, 5});
  CHECK(kept(trace, "finch(budget=4)") == Set{1, 2, 4, 5});
  CHECK(make_policy("finch(budget=3)", geometry_of(trace, {})).spec ==
        "finch(budget=3,window=2,normalise=true,positions=original)");
  CHECK(kept(trace, "finch(budget=3,window=1)") == Set{0, 2, 5});
  // Without its span the last 32 rows would be the question, all of the prompt.
  spec.meta.spans.clear();
  const Policy blind = make_policy("finch", geometry_of(test::make_trace(spec), {}));
  CHECK_THAT(blind.notes.front(), Contains("no span 'question'"));
  CHECK_THROWS_WITH(test::run_one(trace, "finch(positions=cache)", {}), Contains("rope"));
}

TEST_CASE("finch weighs rows by their keys by its definition", "[policy][finch]") {
  test::TraceSpec spec = test::random_spec({.tokens = 30,
                                            .prompt_tokens = 28,
                                            .query_heads = 4,
                                            .kv_heads = 2,
                                            .head_dim = 4,
                                            .seed = 17});
  spec.meta.spans = {{"question", 22, 28}};
  const auto p = test::attention(spec, 0);
  for (const bool normalise : {false, true}) {
    for (std::size_t h = 0; h < 2; ++h) {
      std::vector<std::pair<double, int>> ranked;
      for (int t = 0; t < 22; ++t) {
        double sum = 0;
        for (std::size_t q = 2 * h; q < 2 * h + 2; ++q) {
          for (std::size_t row = 22; row < 28; ++row)
            sum += p[q][row][static_cast<std::size_t>(t)] * (normalise ? double(row) : 1.0);
        }
        ranked.emplace_back(-sum, t);
      }
      std::sort(ranked.begin(), ranked.end());
      Set expected{22, 23, 24, 25, 26, 27};
      for (std::size_t i = 0; i < 5; ++i) expected.push_back(ranked[i].second);
      std::sort(expected.begin(), expected.end());
      const std::string policy =
          fmt::format("finch(budget=11,normalise={})", normalise ? "true" : "false");
      CHECK(kept(test::make_trace(spec), policy, 0, static_cast<int>(h)) == expected);
    }
  }
}

// ---- vase ---------------------------------------------------------------------------------------

namespace {

// Keys of zero unless given; values of two channels, 0 and the number: their range.
Trace ranges(const std::vector<double>& numbers, int prompt, const std::vector<double>& keys = {}) {
  Vectors values;
  for (const double x : numbers) values.push_back({0, x});
  return one_head(column(keys.empty() ? std::vector<double>(numbers.size(), 0.0) : keys), prompt,
                  values, ones(numbers.size()));
}

}  // namespace

TEST_CASE("vase keeps the largest values when its buffer divides what is held", "[policy][vase]") {
  // 6 are held after row 5: of the four before the buffer the first stays, and token 2. 6 again
  // after row 7: the first, and token 5 of 2, 4 and 5.
  const Trace trace = ranges({0, 1, 5, 2, 3, 7, 1, 1, 1, 1}, 4);
  CHECK(deaths(trace, "vase(budget=4,buffer=2,sinks=1,large=2)") ==
        Rows{10, 6, 8, 6, 8, 10, 10, 10, 10, 10});
  // Nothing leaves a prompt beyond the budget before decode: 8 are held after row 7.
  const Trace longer = ranges({0, 1, 5, 2, 3, 7, 1, 1, 1, 1}, 7);
  CHECK(deaths(longer, "vase(budget=4,buffer=4,sinks=1,large=2)") ==
        Rows{8, 8, 8, 8, 10, 10, 10, 10, 10, 10});
  CHECK(deaths(longer, "vase(budget=6,buffer=4,sinks=1,large=2)") ==
        Rows{10, 8, 10, 8, 10, 10, 10, 10, 10, 10});
  // Keys alone and values alone say 3 and 2; squares of both 1 9 16 25, whatever the projection.
  const Trace both =
      one_head(column({1, 3, 2, 1, 1, 1, 1, 1}), 4, column({1, 1, 2, 5, 1, 1, 1, 1}), ones(8));
  for (const char* seed : {"1", "2", "3"}) {
    CHECK(deaths(both, fmt::format("vase(budget=4,form=dkv,buffer=2,sinks=1,seed={})", seed))[2] ==
          6);
    CHECK(deaths(both, fmt::format("vase(budget=4,form=dkv,buffer=2,sinks=0,seed={})", seed)) ==
          Rows{6, 6, 8, 8, 8, 8, 8, 8});
  }
  // Queries of the buffer's rows: two of one channel.
  CHECK(test::run_one(trace, "vase(budget=4,buffer=2)", {}).metrics.peak_bytes.overhead == 2 * 2);
  CHECK(test::run_one(trace, "vase(budget=4,buffer=2,form=dkv)", {}).metrics.peak_bytes.overhead ==
        0);
}

TEST_CASE("vase draws what is left as often as it is looked at", "[policy][vase]") {
  // One place for tokens 1, 2 and 3, whose weights are 1, 2 and 1.
  const Trace trace = ranges({1, 1, 1, 1, 1, 1, 1, 1}, 4, {0, 0, std::log(2), 0, 0, 0, 0, 0});
  std::vector<int> drawn(4, 0);
  for (int seed = 0; seed < 400; ++seed) {
    const std::string policy =
        fmt::format("vase(budget=4,buffer=2,sinks=1,large=1,kernel=1,seed={})", seed);
    const Rows died = deaths(trace, policy);
    for (std::size_t t = 1; t < 4; ++t) drawn[t] += died[t] > 6 ? 1 : 0;
  }
  CHECK(drawn[1] + drawn[2] + drawn[3] == 400);
  // Three standard deviations: 26, 30, 26.
  CHECK(std::abs(drawn[1] - 100) < 26);
  CHECK(std::abs(drawn[2] - 200) < 30);
  CHECK(std::abs(drawn[3] - 100) < 26);
}

namespace {

// Death rows of one head of a trace by VaSE's program, entries in their places.
Rows vase_of(const test::TraceSpec& spec, int layer, int head, int budget, int buffer, int large,
             int seed) {
  const test::LayerSpec& x = spec.layers[static_cast<std::size_t>(layer)];
  const int tokens = static_cast<int>(spec.meta.tokens);
  const auto at = [](const std::vector<double>& from, int row, int heads, int h, int i) {
    return from[static_cast<std::size_t>((row * heads + h) * 4 + i)];
  };
  Rows deaths(static_cast<std::size_t>(tokens), tokens);
  std::vector<int> places;
  for (int row = 0; row + 1 < tokens; ++row) {
    places.push_back(row);
    const int held = static_cast<int>(places.size()), end = row + 1;
    if (end <= spec.meta.prompt_tokens || held <= budget || held % buffer != 0) continue;
    const std::vector<int> newest(places.end() - buffer, places.end());
    places.resize(places.size() - newest.size());
    const int count = static_cast<int>(places.size());
    std::vector<double> score(places.size(), 0.0);
    for (int q = 2 * head; q < 2 * head + 2; ++q) {
      std::vector<double> mean(places.size() + 2, 0.0);  // a zero at both ends
      for (int r = end - buffer; r < end; ++r) {
        std::vector<double> z;
        double sum = 0;
        for (const int t : places) {
          double product = 0;
          for (int i = 0; i < 4; ++i) product += at(x.q, r, 4, q, i) * at(x.k, t, 2, head, i);
          sum += z.emplace_back(std::exp(product / 2));
        }
        for (std::size_t i = 0; i < z.size(); ++i) mean[i + 1] += z[i] / sum / buffer;
      }
      for (std::size_t i = 0; i < score.size(); ++i)
        score[i] += (mean[i] + mean[i + 1] + mean[i + 2]) / 3 / 2;
    }
    std::vector<std::pair<double, int>> sizes, drawn;  // minus, so that the best come first
    for (int i = 0; i < count; ++i) {
      double least = 1e9, most = -1e9;
      for (int c = 0; c < 4; ++c) {
        least = std::min(least, at(x.v, places[static_cast<std::size_t>(i)], 2, head, c));
        most = std::max(most, at(x.v, places[static_cast<std::size_t>(i)], 2, head, c));
      }
      sizes.emplace_back(i < 2 ? -1e9 + i : least - most, i);
    }
    std::sort(sizes.begin(), sizes.end());
    std::vector<int> next;
    for (int i = 0; i < large; ++i)
      next.push_back(places[static_cast<std::size_t>(sizes[static_cast<std::size_t>(i)].second)]);
    for (int i = 0; i < count; ++i) {
      const int token = places[static_cast<std::size_t>(i)];
      if (std::find(next.begin(), next.end(), token) != next.end()) continue;
      const double u = uniform(static_cast<std::uint64_t>(seed), {layer, head, token, end});
      drawn.emplace_back(std::log(u) / score[static_cast<std::size_t>(i)], token);
    }
    // An exponential over its weight is early where the weight is large.
    std::sort(drawn.begin(), drawn.end(), std::greater<>());
    for (const auto& [time, token] : drawn) {
      if (static_cast<int>(next.size()) < budget - buffer) {
        next.push_back(token);
      } else {
        deaths[static_cast<std::size_t>(token)] = end;
      }
    }
    next.insert(next.end(), newest.begin(), newest.end());
    places = next;
  }
  return deaths;
}

}  // namespace

TEST_CASE("vase draws, lays its cache anew and draws again by its definition", "[policy][vase]") {
  for (int seed = 1; seed < 9; ++seed) {
    const test::TraceSpec spec = test::random_spec({.layers = 2,
                                                    .tokens = 48,
                                                    .prompt_tokens = 9 + 2 * seed,
                                                    .query_heads = 4,
                                                    .kv_heads = 2,
                                                    .head_dim = 4,
                                                    .seed = static_cast<std::uint64_t>(seed)});
    const int budget = 13 + seed % 4, buffer = 3 + seed % 3, large = 4;
    const std::string policy = fmt::format(
        "vase(budget={},buffer={},large={},sinks=2,kernel=3,seed={})", budget, buffer, large, seed);
    INFO(policy);
    const Trace trace = test::make_trace(spec);
    for (int l = 0; l < 2; ++l) {
      for (int h = 0; h < 2; ++h)
        CHECK(deaths(trace, policy, {}, l, h) == vase_of(spec, l, h, budget, buffer, large, seed));
    }
  }
}

// ---- caote --------------------------------------------------------------------------------------

TEST_CASE("caote keeps what the output would miss, not what is looked at", "[policy][caote]") {
  // Shares 1/4, 1/2, 1/4 of three candidates; the last row of the prompt is the window.
  const std::vector<double> keys = {0, std::log(2), 0, 0, 0};
  const auto with = [&](const Vectors& values) { return logits(keys, 4, values); };
  // o = 0: token 1 adds nothing, and 1/3 x 4 each for the others.
  const Trace middle = with(column({4, 0, -4, 0, 0}));
  CHECK(kept(middle, "snapkv(budget=2,window=1,kernel=1)") == Set{1, 3});
  CHECK(kept(middle, "caote(snapkv(budget=2,window=1,kernel=1))") == Set{0, 3});
  CHECK(kept(middle, "caote(snapkv(budget=3,window=1,kernel=1))") == Set{0, 2, 3});
  // o = 2.5: .83, 1 x 1.5, 1/3 x 5.5 = 1.83; with the mean, 3: 1, 2, 1.67.
  const Trace skewed = with(column({0, 1, 8, 0, 0}));
  CHECK(kept(skewed, "caote(snapkv(budget=2,window=1,kernel=1))") == Set{2, 3});
  CHECK(kept(skewed, "caote(snapkv(budget=2,window=1,kernel=1),fast=true)") == Set{1, 3});
  CHECK_THAT(refusal(middle, "caote(tova(budget=2))"), Contains("one set for all heads"));
  CHECK_THAT(refusal(middle, "caote(knorm(budget=2))"), Contains("negative numbers"));
  CHECK_THAT(refusal(middle, "caote(streaming_llm(budget=2))"), Contains("by importance"));
}

TEST_CASE("caote's score is what the output moves by when an entry is dropped", "[policy][caote]") {
  const test::TraceSpec spec = test::random_spec({.tokens = 22,
                                                  .prompt_tokens = 20,
                                                  .query_heads = 2,
                                                  .kv_heads = 2,
                                                  .head_dim = 4,
                                                  .seed = 5});
  const auto p = test::attention(spec, 0);
  for (std::size_t h = 0; h < 2; ++h) {
    const auto output = [&](int dropped) {
      std::vector<double> out(4, 0.0);
      double sum = 0;
      for (int t = 0; t < 19; ++t) {  // before the window
        if (t == dropped) continue;
        const double weight = p[h][19][static_cast<std::size_t>(t)];
        sum += weight;
        for (std::size_t i = 0; i < 4; ++i)
          out[i] += weight * spec.layers[0].v[(static_cast<std::size_t>(t) * 2 + h) * 4 + i];
      }
      for (double& x : out) x /= sum;
      return out;
    };
    const std::vector<double> whole = output(-1);
    std::vector<std::pair<double, int>> ranked;
    for (int t = 0; t < 19; ++t) {
      const std::vector<double> without = output(t);
      double square = 0;
      for (std::size_t i = 0; i < 4; ++i)
        square += (whole[i] - without[i]) * (whole[i] - without[i]);
      ranked.emplace_back(-square, t);
    }
    std::sort(ranked.begin(), ranked.end());
    Set expected{19};
    for (std::size_t i = 0; i < 6; ++i) expected.push_back(ranked[i].second);
    std::sort(expected.begin(), expected.end());
    CHECK(kept(test::make_trace(spec), "caote(snapkv(budget=7,window=1,kernel=1))", 0,
               static_cast<int>(h)) == expected);
  }
}

// ---- merge --------------------------------------------------------------------------------------

namespace {

double error_of(const Trace& trace, const std::string& policy) {
  return test::run_one(trace, policy, {}).fidelity->decode->error_mean;
}

}  // namespace

TEST_CASE("merge adds a victim's value into the survivor with the nearest key", "[policy][merge]") {
  // knorm keeps the key of length 1. Rows without queries average values: the row after the prompt
  // reads what is left, and its own value, 0.
  const auto error = [](const Vectors& keys, const std::vector<double>& values,
                        const std::string& policy) {
    return error_of(test::one_head(keys, static_cast<int>(keys.size()) - 1, test::column(values)),
                    policy);
  };
  const Vectors one = {{1, 0}, {2, 0}, {0, 1}};
  // 1 and 3: 3 / 4 of 3, so (1 + 2.25) / 1.75 = 1.857. Means .929 and 1.333; .5 without.
  CHECK(error(one, {1, 3, 0}, "knorm(budget=1)") == Approx(0.625));
  CHECK(error(one, {1, 3, 0}, "knorm(budget=1)+merge") == Approx(1 - 13.0 / 14 / (4.0 / 3)));
  // Another one of 6: 6 / 7 of it, so (1 + 9/4 + 36/7) / (1 + 3/4 + 6/7) = 235/28 / (73/28).
  const Vectors two = {{1, 0}, {2, 0}, {3, 0}, {0, 1}};
  CHECK(error(two, {1, 3, 6, 0}, "knorm(budget=1)+merge") == Approx(1 - 235.0 / 73 / 2 / 2.5));
  // A key across, or one below the threshold, is lost.
  const Vectors across = {{1, 0}, {0, 2}, {0, 1}};
  CHECK(error(across, {1, 3, 0}, "knorm(budget=1)+merge") == Approx(0.625));
  const Vectors aslant = {{1, 0}, {3, 4}, {0, 1}};  // cosine .6: .45 of 3, so 2.35 / 1.45
  CHECK(error(aslant, {1, 3, 0}, "knorm(budget=1)+merge") ==
        Approx(1 - 2.35 / 1.45 / 2 / (4.0 / 3)));
  CHECK(error(aslant, {1, 3, 0}, "knorm(budget=1)+merge(threshold=0.7)") == Approx(0.625));
}

TEST_CASE("merge goes on with what a survivor holds, and changes no lifetime", "[policy][merge]") {
  // decoding(knorm) to 2 in every row: token 1 goes into 0 after row 2, then token 2 into 0.
  // 1 and 3: 13/7. Then 13/7 and 2: w = 14/27, (13/7 + 28/27) / (41/27). Row 4 reads this, token 3,
  // and its own: 0 and 0.
  const Trace trace =
      test::one_head({{1, 0}, {4, 0}, {3, 0}, {0, 2}, {0, 1.5}}, 2, test::column({1, 3, 2, 0, 0}));
  const std::string cut = "decoding(knorm(budget=5),every=1,target=2)";
  CHECK(deaths(trace, cut) == Rows{5, 3, 4, 5, 5});
  CHECK(deaths(trace, cut + "+merge") == Rows{5, 3, 4, 5, 5});
  // Rows 2, 3 and 4 read 3 of 3, 3 of 4, and 3 of 5 entries.
  const double once = 13.0 / 7, twice = (13.0 / 7 + 28.0 / 27) / (41.0 / 27);
  const double third = std::abs((once + 2) / 3 - 6.0 / 4) / (6.0 / 4);
  const double fourth = std::abs(twice / 3 - 6.0 / 5) / (6.0 / 5);
  CHECK(error_of(trace, cut + "+merge") == Approx((third + fourth) / 3));
  CHECK_THROWS_WITH(test::run_one(trace, "merge", {}), Contains("it merges what another policy"));
}

// ---- cam ----------------------------------------------------------------------------------------

TEST_CASE("cam spreads what leaves over the entries behind it", "[policy][cam]") {
  // Rows without queries look at all alike: every draw wins. After row 2 the 4 goes, half to 8 and
  // half to 2: 10 and 4. After row 3 the 10 goes to 4 and 6: 9 and 11. Rows read three entries.
  const Trace trace = test::one_head(column({0, 0, 0, 0, 0}), 2, column({4, 8, 2, 6, 0}));
  const std::string window = "streaming_llm(sinks=0,window=2)";
  const double third = (10.0 + 4 + 6) / 3 / (20.0 / 4) - 1, fourth = (9.0 + 11 + 0) / 3 / 4 - 1;
  CHECK(error_of(trace, window + "+cam(merge=2)") == Approx((third + fourth) / 3));
  CHECK(deaths(trace, window + "+cam") == deaths(trace, window));
  // Only one entry behind it takes all: 8 + 4, and then 12 + 2.
  const double all = (12.0 + 2 + 6) / 3 / (20.0 / 4) - 1, later = (14.0 + 6 + 0) / 3 / 4 - 1;
  CHECK(error_of(trace, window + "+cam(merge=1)") == Approx((all + later) / 3));
  // What leaves a prompt is lost.
  const Trace prompt = test::one_head(column({0, 0, 0, 0, 0}), 4, column({4, 8, 2, 6, 0}));
  CHECK(error_of(prompt, window + "+cam") == Approx(error_of(prompt, window)));
  CHECK_THROWS_WITH(test::run_one(trace, "cam", {}), Contains("it merges what another policy"));
}

TEST_CASE("cam merges as often as a victim is looked at beside the others", "[policy][cam]") {
  // Row 2 sees weights 1, 4 and 4: a quarter of the mean.
  const double four = std::log(4);
  const Trace trace = test::one_head(column({0, four, four, 0}), 2, column({3, 8, 2, 6}), ones(4));
  const std::string window = "streaming_llm(sinks=0,window=2)";
  const double plain = error_of(trace, window);
  int merged = 0;
  for (int seed = 0; seed < 400; ++seed) {
    const double error = error_of(trace, fmt::format("{}+cam(seed={})", window, seed));
    merged += std::abs(error - plain) > 1e-6 ? 1 : 0;
  }
  CHECK(std::abs(merged - 100) < 26);  // three standard deviations
  // Sums: 1 + .2 + .11 of it, 1.24 and .44 of the others: more than their mean.
  for (int seed = 0; seed < 20; ++seed) {
    const std::string cam = fmt::format("{}+cam(attention=sums,seed={})", window, seed);
    CHECK(std::abs(error_of(trace, cam) - plain) > 1e-6);
  }
}

// ---- turboquant ---------------------------------------------------------------------------------

TEST_CASE("levels for normal numbers are Lloyd's and Max's", "[policy][turboquant]") {
  // Max 1960, table 1.
  const std::vector<std::vector<double>> upper = {
      {0.7980},
      {0.4528, 1.510},
      {0.2451, 0.7560, 1.344, 2.152},
      {0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733}};
  for (std::size_t bits = 1; bits <= upper.size(); ++bits) {
    const std::vector<double> levels = policies::normal_levels(static_cast<int>(bits));
    const std::size_t half = upper[bits - 1].size();
    REQUIRE(levels.size() == 2 * half);
    for (std::size_t i = 0; i < half; ++i) {
      CHECK(levels[half + i] == Approx(upper[bits - 1][i]).epsilon(5e-4));
      CHECK(levels[half - 1 - i] == Approx(-upper[bits - 1][i]).epsilon(5e-4));
    }
  }
}

TEST_CASE("vLLM's levels fall short of them at the ends", "[policy][turboquant]") {
  // solve_lloyd_max(128, bits) of vllm-project/vllm, in deviations.
  const std::vector<std::vector<double>> upper = {
      {0.24498, 0.75565, 1.34318, 2.15035},
      {0.12843, 0.38814, 0.65688, 0.94245, 1.25626, 1.61788, 2.06845, 2.73092}};
  for (const std::vector<double>& half : upper) {
    const std::vector<double> levels = policies::levels_of_vllm(half.size() == 4 ? 3 : 4);
    for (std::size_t i = 0; i < half.size(); ++i)
      CHECK(levels[half.size() + i] == Approx(half[i]).margin(6e-6));
  }
}

TEST_CASE("turboquant turns keys, rounds, and keeps their length", "[policy][turboquant]") {
  const std::vector<double> levels = policies::normal_levels(3);
  // Along an axis: four equal coordinates stay equal, and the length is kept.
  std::vector<float> key = {2, 0, 0, 0};
  policies::through_levels(key, levels);
  CHECK(double{key[0]} == Approx(2));
  CHECK(double{key[1]} == Approx(0).margin(1e-6));
  // (3, 1, 0, 0) turned is (4, 2, 4, 2) / 2; over its length, in deviations of 1/2: 1.265 and .632,
  // so 1.344 and .756. Turned back (4.2, 1.176, 0, 0) / 2, of length 2.181, to the length 3.1621.
  key = {3, 1, 0, 0};
  policies::through_levels(key, levels);
  const double scale = 3.1621 / std::hypot(4.2, 1.176);
  CHECK(double{key[0]} == Approx(4.2 * scale).epsilon(1e-3));
  CHECK(double{key[1]} == Approx(1.176 * scale).epsilon(2e-3));
  CHECK(double{key[2]} == Approx(0).margin(1e-5));
  std::vector<float> nothing(4, 0.0F);
  policies::through_levels(nothing, levels);
  CHECK(nothing == std::vector<float>(4, 0.0F));
  // Values: steps of 1, half a step goes up.
  std::vector<float> value = {0, 1.5F, 2.4F, 15};
  policies::through_steps(value, 4);
  CHECK(value == std::vector<float>{0, 2, 2, 15});
  // E4M3: three bits after the leading one; below 2^-6 steps of 2^-9.
  CHECK(policies::round_e4m3(1.0625F) == 1.0F);
  CHECK(policies::round_e4m3(1.07F) == 1.125F);
  CHECK(policies::round_e4m3(-460) == -448);
  CHECK(policies::round_e4m3(0.003F) == 0.00390625F);
}

TEST_CASE("turboquant holds what vLLM's slots hold, from the end of an entry's pass on",
          "[policy][turboquant]") {
  // Llama-3.1-8B, 2 x 128 channels of 2 bytes: 512; 32 layers of 8 heads.
  const Geometry llama = test::llama_8b(100, 0);
  const auto bytes = [&](const std::string& preset) {
    const Policy policy = make_policy("turboquant(preset=" + preset + ")", llama);
    const std::vector<Representation>& held = policy.representations;
    CHECK(held[0].device_bytes == 512);
    CHECK(policy.payload(100, {}) == 100 * held[1].device_bytes);
    return held[1].device_bytes;
  };
  CHECK(bytes("k8v4") == 128 + 64 + 4);        // 2.6 x
  CHECK(bytes("4bit_nc") == 64 + 2 + 64 + 4);  // 3.8 x
  CHECK(bytes("k3v4_nc") == 48 + 2 + 64 + 4);
  CHECK(bytes("3bit_nc") == 48 + 2 + 48 + 4);  // 5 x
  const Trace trace = test::make_trace(
      test::random_spec({.tokens = 60, .prompt_tokens = 50, .head_dim = 16, .seed = 3}));
  const auto run = [&](const std::string& policy) { return test::run_one(trace, policy, {}); };
  // 32 bytes of K, 32 of V while the prompt attends; 8 + 2 and 8 + 4 then, and in full one a row.
  const std::vector<std::int64_t> kv = run("turboquant").metrics.timeline.resident_bytes;
  CHECK(kv[49] == 50 * 64);
  CHECK(kv[50] == 50 * 22 + 64);
  CHECK(kv[59] == 59 * 22 + 64);
  double last = 0;
  for (const char* preset : {"k8v4", "4bit_nc", "k3v4_nc", "3bit_nc"}) {
    const double error = error_of(trace, std::string("turboquant(preset=") + preset + ")");
    CHECK(error > last);
    last = error;
  }
  CHECK(deaths(trace, "turboquant+snapkv(budget=20)") == deaths(trace, "snapkv(budget=20)"));
  const Trace odd = test::make_trace(
      test::random_spec({.tokens = 9, .prompt_tokens = 5, .head_dim = 6, .seed = 3}));
  CHECK_THAT(refusal(odd, "turboquant"), Contains("expected a power of two"));
  CHECK(refusal(odd, "turboquant(preset=k8v4)") == "");
}
