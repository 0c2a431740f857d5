// SPDX-License-Identifier: Apache-2.0
// Scores of methods of 2025 and 2026: worked examples, small enough to check by hand.
#include <algorithm>
#include <cmath>

#include <catch2/catch.hpp>

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
