// SPDX-License-Identifier: Apache-2.0
// Attention of one head against a softmax written out, and against the mass that replays report.
#include "sim/attention/head_attention.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "sim/run/run.h"
#include "tests/support/trace_builder.h"

using namespace kvspan;

namespace {

constexpr std::int64_t kRowsOfHead = 75;

test::TraceSpec spec_of_two_layers() {
  test::TraceSpec spec = test::random_spec({.layers = 2,
                                            .tokens = kRowsOfHead,
                                            .prompt_tokens = 50,
                                            .query_heads = 6,
                                            .kv_heads = 2,
                                            .head_dim = 4,
                                            .seed = 5});
  spec.meta.sliding_window = {0, 20};
  return spec;
}

// Probabilities of one query head by the definition; [row][key].
std::vector<std::vector<double>> softmax(const test::TraceSpec& spec, int layer, int query_head) {
  const TraceMeta meta = test::completed(spec);
  const auto& from = spec.layers[static_cast<std::size_t>(layer)];
  const int kv_head = query_head / (meta.query_heads / meta.kv_heads);
  const std::int64_t window = meta.sliding_window[static_cast<std::size_t>(layer)];
  std::vector<std::vector<double>> out;
  for (std::int64_t row = 0; row < meta.tokens; ++row) {
    std::vector<double>& p = out.emplace_back(static_cast<std::size_t>(meta.tokens), 0.0);
    double sum = 0;
    for (std::int64_t key = 0; key <= row; ++key) {
      if (window > 0 && key <= row - window) continue;
      double dot = 0;
      for (int d = 0; d < meta.head_dim; ++d) {
        dot +=
            from.q[static_cast<std::size_t>((row * meta.query_heads + query_head) * meta.head_dim +
                                            d)] *
            from.k[static_cast<std::size_t>((key * meta.kv_heads + kv_head) * meta.head_dim + d)];
      }
      sum += p[static_cast<std::size_t>(key)] = std::exp(dot * meta.score_scale);
    }
    for (double& value : p) value /= sum;
  }
  return out;
}

std::vector<std::uint32_t> some_deaths() {
  std::vector<std::uint32_t> deaths;
  for (std::uint32_t t = 0; t < kRowsOfHead; ++t)
    deaths.push_back(std::min<std::uint32_t>(kRowsOfHead, t + 1 + t * 7 % 40));
  return deaths;
}

}  // namespace

TEST_CASE("received, lost and the map are those of a softmax by hand", "[head_attention]") {
  const test::TraceSpec spec = spec_of_two_layers();
  const Trace trace = test::make_trace(spec);
  const int layer = GENERATE(0, 1);
  const int heads = GENERATE(2, 6);
  const int head = GENERATE(0, 1);
  const std::int64_t grid = GENERATE(10, 75, 512);
  const std::vector<std::uint32_t> deaths = some_deaths();
  HeadAttentionOptions options;
  options.grid = grid;
  options.threads = GENERATE(1, 3);
  const HeadAttention found = attention_of_head(trace, {layer, head, heads}, deaths, options);
  const std::int64_t cells = std::min(grid, kRowsOfHead);
  REQUIRE(found.grid == cells);
  CHECK(found.rows.size() == static_cast<std::size_t>(kRowsOfHead));
  CHECK(!found.sampled);

  const int served = 6 / heads;
  std::vector<double> received(kRowsOfHead, 0.0), lost(kRowsOfHead, 0.0);
  std::vector<double> map(static_cast<std::size_t>(cells * cells), -1.0);
  std::vector<std::vector<std::vector<double>>> p;
  for (int q = head * served; q < (head + 1) * served; ++q) p.push_back(softmax(spec, layer, q));
  for (std::size_t row = 0; row < kRowsOfHead; ++row) {
    for (std::size_t t = 0; t <= row; ++t) {
      double mean = 0;
      for (const auto& one : p) mean += one[row][t] / served;
      (row < deaths[t] ? received : lost)[t] += mean;
      const auto r = static_cast<std::int64_t>(row) * cells / kRowsOfHead;
      const auto c = static_cast<std::int64_t>(t) * cells / kRowsOfHead;
      double& cell = map[static_cast<std::size_t>(r * cells + c)];
      cell = std::max(cell, mean);
    }
  }
  for (std::size_t t = 0; t < kRowsOfHead; ++t) {
    CHECK(static_cast<double>(found.received[t]) == Approx(received[t]).epsilon(1e-5).margin(1e-9));
    CHECK(static_cast<double>(found.lost[t]) == Approx(lost[t]).epsilon(1e-5).margin(1e-9));
  }
  for (std::size_t i = 0; i < map.size(); ++i) {
    if (map[i] < 0) {
      CHECK(std::isnan(found.map[i]));
    } else {
      CHECK(static_cast<double>(found.map[i]) == Approx(map[i]).epsilon(1e-5).margin(1e-9));
    }
  }
}

TEST_CASE("what a head receives is the mass that the replay retains", "[head_attention]") {
  const auto [policy, heads] =
      GENERATE(table<std::string, int>({{"h2o(budget=12)", 2},
                                        {"tova(budget=12)", 2},
                                        {"snapkv(budget=12,window=4,group=none)", 6}}));
  INFO(policy);
  test::TraceSpec spec = spec_of_two_layers();
  if (GENERATE(false, true)) {
    for (test::LayerSpec& layer : spec.layers) layer.sink_logits = {0.5, 1, -1, 0, 2, 0.25};
  }
  const Trace trace = test::make_trace(spec);
  const RunResult run = run_policies(trace, {parse_spec(policy)}, {}, {})[0];
  REQUIRE(run.ledger.heads == heads);
  double least = 1;
  for (int layer = 0; layer < 2; ++layer) {
    for (int head = 0; head < heads; ++head) {
      HeadAttentionOptions options;
      options.begin = 50;  // masses of heads are those of decode rows
      const HeadAttention found =
          attention_of_head(trace, {layer, head, heads}, run.ledger.deaths(layer, head), options);
      double received = 0;
      double all = 0;
      for (std::size_t t = 0; t < kRowsOfHead; ++t) {
        received += static_cast<double>(found.received[t]);
        all += static_cast<double>(found.received[t]) + static_cast<double>(found.lost[t]);
      }
      const int served = 6 / heads;
      double mass = 0;
      for (int q = head * served; q < (head + 1) * served; ++q) {
        mass +=
            run.fidelity->head_mass[static_cast<std::size_t>(layer)][static_cast<std::size_t>(q)] /
            served;
      }
      CHECK(received / 25 == Approx(mass).epsilon(1e-5));
      CHECK(all / 25 == Approx(1).epsilon(1e-5));
      least = std::min(least, mass);
    }
  }
  CHECK(least < 0.95);
}

TEST_CASE("of a score trace the captured rows are taken", "[head_attention]") {
  // Layer 0 of spec_of_two_layers(), every third row, whole.
  const test::TraceSpec full = spec_of_two_layers();
  test::TraceSpec spec;
  spec.meta = test::completed(full);
  spec.meta.layers = spec.meta.model_layers = 1;
  spec.meta.layer_ids = {0};
  spec.meta.sliding_window = {0};
  test::LayerSpec& layer = spec.layers.emplace_back();
  std::vector<std::vector<std::vector<double>>> p;
  for (int q = 0; q < 6; ++q) p.push_back(softmax(full, 0, q));
  for (std::size_t row = 1; row < kRowsOfHead; row += 3) {
    layer.rows.push_back(static_cast<std::int64_t>(row));
    for (const auto& of_head : p) {
      layer.dense.insert(layer.dense.end(), of_head[row].begin(), of_head[row].end());
      layer.lse.push_back(0);
    }
  }
  const Trace trace = test::make_trace(spec);
  const std::vector<std::uint32_t> deaths = some_deaths();
  const HeadAttention found = attention_of_head(trace, {0, 1, 2}, deaths);
  CHECK(found.rows == layer.rows);
  CHECK(!found.sampled);
  for (std::size_t t = 0; t < kRowsOfHead; ++t) {
    double received = 0;
    for (std::size_t row = 1; row < kRowsOfHead; row += 3) {
      if (row >= t && row < deaths[t]) received += (p[3][row][t] + p[4][row][t] + p[5][row][t]) / 3;
    }
    CHECK(static_cast<double>(found.received[t]) == Approx(received).epsilon(1e-5).margin(1e-9));
  }
}

TEST_CASE("beyond the cost an even sample of rows stands for all", "[head_attention]") {
  const Trace trace = test::make_trace(spec_of_two_layers());
  const std::vector<std::uint32_t> forever(kRowsOfHead, kRowsOfHead);
  HeadAttentionOptions options;
  // A sixth of 75 * 76 / 2 pairs, 3 query heads of 4.
  options.max_cost = 75 * 76 / 2 * 3 * 4 / 6;
  const HeadAttention found = attention_of_head(trace, {0, 0, 2}, forever, options);
  CHECK(found.sampled);
  CHECK(found.rows == std::vector<RowIndex>{3, 9, 15, 21, 28, 34, 40, 46, 53, 59, 65, 71});
  // Every row hands out a probability of one.
  double sum = 0;
  for (const float value : found.received) sum += static_cast<double>(value);
  CHECK(sum == Approx(75).epsilon(1e-5));
  for (std::size_t t = 72; t < kRowsOfHead; ++t) CHECK(found.received[t] == 0);
  CHECK(std::isnan(found.map[75 * 10 + 3]));  // a row that is not in the sample
  CHECK(found.map[75 * 9 + 3] > 0);
  options.max_cost = 1;
  CHECK(attention_of_head(trace, {0, 0, 2}, forever, options).rows.size() == 1);
}

TEST_CASE("attention of a head can be cancelled", "[head_attention]") {
  const Trace trace = test::make_trace(spec_of_two_layers());
  HeadAttentionOptions options;
  options.cancelled = [] { return true; };
  CHECK_THROWS_AS(attention_of_head(trace, {0, 0, 2}, some_deaths(), options), Interrupted);
}
