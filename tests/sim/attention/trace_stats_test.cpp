// SPDX-License-Identifier: Apache-2.0
#include "sim/attention/trace_stats.h"

#include <algorithm>
#include <cmath>
#include <set>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <tbb/global_control.h>

#include "sim/base/error.h"
#include "tests/support/trace_builder.h"

using namespace kvspan;

namespace {

// One layer, one head of one channel: p(j) of every row is proportional to weights[j].
Trace weighted(const std::vector<double>& weights, std::int64_t prompt,
               std::vector<Span> spans = {}) {
  test::TraceSpec spec;
  spec.meta.tokens = static_cast<std::int64_t>(weights.size());
  spec.meta.prompt_tokens = prompt;
  spec.meta.query_heads = 1;
  spec.meta.head_dim = 1;
  spec.meta.score_scale = 1;
  spec.meta.spans = std::move(spans);
  test::LayerSpec layer;
  layer.q.assign(weights.size(), 1.0);
  for (const double w : weights) layer.k.push_back(std::log(w));
  spec.layers = {layer};
  return test::make_trace(spec);
}

// Probabilities of a row in fp64, straight from the definition.
std::vector<double> row_of(const test::TraceSpec& spec, const test::LayerSpec& layer, int head,
                           std::int64_t row, std::int64_t window) {
  const TraceMeta meta = test::completed(spec);
  const std::int64_t dim = meta.head_dim;
  const std::int64_t kv = head / (meta.query_heads / meta.kv_heads);
  std::vector<double> p(static_cast<std::size_t>(row) + 1);
  double sum =
      layer.sink_logits.empty() ? 0 : std::exp(layer.sink_logits[static_cast<std::size_t>(head)]);
  for (std::int64_t j = window == 0 ? 0 : std::max<std::int64_t>(0, row - window + 1); j <= row;
       ++j) {
    double z = 0;
    for (std::int64_t c = 0; c < dim; ++c) {
      z += layer.q[static_cast<std::size_t>((row * meta.query_heads + head) * dim + c)] *
           layer.k[static_cast<std::size_t>((j * meta.kv_heads + kv) * dim + c)];
    }
    p[static_cast<std::size_t>(j)] = std::exp(z * meta.score_scale);
    sum += p[static_cast<std::size_t>(j)];
  }
  for (double& x : p) x /= sum;
  return p;
}

// Mass received from each of the four windows: row i of n is of window floor(4 i / n).
std::vector<std::vector<double>> window_mass(const std::vector<std::vector<double>>& rows,
                                             std::size_t tokens) {
  std::vector<std::vector<double>> out(4, std::vector<double>(tokens));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::vector<double>& window = out[i * 4 / rows.size()];
    for (std::size_t j = 0; j < rows[i].size(); ++j) window[j] += rows[i][j];
  }
  return out;
}

double overlap(const std::vector<double>& a, const std::vector<double>& b, std::size_t keys) {
  const auto top = [&](const std::vector<double>& mass) {
    std::vector<std::size_t> order(keys);
    for (std::size_t j = 0; j < keys; ++j) order[j] = j;
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t x, std::size_t y) { return mass[x] > mass[y]; });
    return std::set<std::size_t>(order.begin(),
                                 order.begin() + static_cast<std::ptrdiff_t>((keys + 9) / 10));
  };
  const auto x = top(a);
  const auto y = top(b);
  std::size_t both = 0;
  for (const std::size_t j : x) both += y.count(j);
  return static_cast<double>(both) / static_cast<double>(x.size());
}

}  // namespace

TEST_CASE("uniform attention has the entropy of a uniform distribution", "[trace_stats]") {
  // Rows 8 and 9 of the prompt and 10 and 11 of the decode phase; row i reads i + 1 equal keys.
  const Trace trace = weighted(std::vector<double>(12, 1.0), 10);
  const TraceStats stats =
      trace_stats(trace, {.sinks = 3, .window = 2, .rows = 100, .from = 8, .layers = {}});
  const HeadStats& head = stats.layers.at(0).heads.at(0);
  CHECK(stats.bins == std::vector<std::int64_t>{0, 1, 2, 4, 8});
  REQUIRE(head.prompt.rows == 2);
  REQUIRE(head.decode.rows == 2);
  CHECK(head.prompt.entropy == Approx((std::log(9.0) + std::log(10.0)) / 2));
  CHECK(head.prompt.entropy_max == head.prompt.entropy);
  CHECK(head.prompt.support == Approx(9.5));
  CHECK(head.prompt.sink == Approx((3.0 / 9 + 3.0 / 10) / 2));
  CHECK(head.prompt.local == Approx((2.0 / 9 + 2.0 / 10) / 2));
  CHECK(head.decode.sink == Approx((3.0 / 11 + 3.0 / 12) / 2));
  CHECK(head.prompt.top[1] == Approx((4.0 / 9 + 4.0 / 10) / 2));
  CHECK(head.prompt.top[2] == Approx(1));
  // 5 % of 9 or 10 keys is one key, 20 % are two.
  CHECK(head.prompt.top_shares[1] == Approx((1.0 / 9 + 1.0 / 10) / 2));
  CHECK(head.prompt.top_shares[2] == Approx((2.0 / 9 + 2.0 / 10) / 2));
  // Without the sinks 0, 1 and 2: distances 4 to 7 are keys 3 and 4 of row 8, keys 3 to 5 of row 9.
  CHECK(head.prompt.distance[4] == 0);
  CHECK(head.prompt.distance[3] == Approx((2.0 / 9 + 3.0 / 10) / 2));
  CHECK(head.prompt.distance[2] == Approx((2.0 / 9 + 2.0 / 10) / 2));
  CHECK(head.prompt.residual == 0);
  CHECK(head.head_class == HeadClass::heavy_hitter);  // ties: every window favours the same keys
}

TEST_CASE("the mass of keys of known weight lies where it was put", "[trace_stats]") {
  // Row 7 reads weights 4 1 1 1 | 8 8 | 1 1 of 25: span [4, 6) has 16 / 25.
  std::vector<double> weights = {4, 1, 1, 1, 8, 8, 1, 1};
  const Trace trace = weighted(weights, 7, {{"needle", 4, 6}});
  const TraceStats stats =
      trace_stats(trace, {.sinks = 1, .window = 1, .rows = 1, .from = 6, .layers = {0}});
  const HeadStats& head = stats.layers.at(0).heads.at(0);
  CHECK(head.decode.spans.at(0) == Approx(16.0 / 25));
  CHECK(head.prompt.spans.at(0) == Approx(16.0 / 24));
  CHECK(head.decode.sink == Approx(4.0 / 25));
  CHECK(head.decode.top[0] == Approx(8.0 / 25));
  CHECK(head.decode.top[1] == Approx(21.0 / 25));
  CHECK(head.decode.entropy ==
        Approx(-(16.0 / 25 * std::log(8.0 / 25) + 4.0 / 25 * std::log(4.0 / 25) +
                 5.0 / 25 * std::log(1.0 / 25))));
  CHECK(head.head_class == HeadClass::retrieval);
  const nlohmann::json written = to_json(stats);
  CHECK(written["layers"][0]["heads"][0]["decode"]["spans"][0].get<double>() == Approx(16.0 / 25));
  CHECK(written["spans"][0]["name"] == "needle");
}

TEST_CASE("a head class follows its documented rule", "[trace_stats]") {
  std::vector<double> weights(200, 1.0);
  const auto classed = [&](std::vector<Span> spans) {
    return trace_stats(weighted(weights, 190, std::move(spans)),
                       {.sinks = 4, .window = 8, .rows = 8, .from = 150, .layers = {}})
        .layers[0]
        .heads[0]
        .head_class;
  };
  weights[0] = 300;
  CHECK(classed({}) == HeadClass::sink);
  weights[20] = 1000;
  CHECK(classed({{"needle", 18, 22}}) == HeadClass::retrieval);
  CHECK(classed({{"turn", 4, 180}}) == HeadClass::heavy_hitter);  // a span, but no needle
  weights[0] = weights[20] = 1;
  for (std::size_t j = 0; j < weights.size(); ++j) weights[j] = std::exp(static_cast<double>(j));
  CHECK(classed({}) == HeadClass::local);
}

TEST_CASE("statistics equal a brute-force twin", "[trace_stats]") {
  const std::int64_t window = GENERATE(0, 40);
  const bool sink_logit = GENERATE(false, true);
  test::TraceSpec spec = test::random_spec({.layers = 2,
                                            .tokens = 96,
                                            .prompt_tokens = 80,
                                            .query_heads = 4,
                                            .kv_heads = 2,
                                            .head_dim = 8,
                                            .seed = 7});
  for (test::LayerSpec& layer : spec.layers) {
    for (double& x : layer.q) x = test::rounded_to(3 * x, Dtype::f32);
    if (sink_logit) layer.sink_logits = {1, 2, 3, 4};
  }
  if (window > 0) spec.meta.sliding_window = {window, window};
  spec.meta.spans = {{"a", 10, 20}, {"b", 70, 90}};
  const Trace trace = test::make_trace(spec);
  const TraceStatsOptions options{.sinks = 2, .window = 5, .rows = 21, .from = 30, .layers = {}};
  const TraceStats stats = trace_stats(trace, options);
  {
    const tbb::global_control one(tbb::global_control::max_allowed_parallelism, 1);
    CHECK(to_json(trace_stats(trace, options)) == to_json(stats));
  }

  std::vector<std::int64_t> sampled;  // 21 of the 50 rows 30 ... 79
  for (int i = 1; i <= 21; ++i) sampled.push_back(30 + i * 50 / 21 - 1);
  for (std::size_t l = 0; l < 2; ++l) {
    for (int q = 0; q < 4; ++q) {
      const HeadStats& head = stats.layers[l].heads[static_cast<std::size_t>(q)];
      std::vector<std::vector<double>> rows;
      double sink = 0, local = 0, entropy = 0, support = 0, top4 = 0, share20 = 0, b = 0, far = 0;
      for (const std::int64_t row : sampled) {
        std::vector<double> p = row_of(spec, spec.layers[l], q, row, window);
        double h = 0;
        double all = 0;
        for (std::size_t j = 0; j < p.size(); ++j) {
          const auto d = static_cast<std::size_t>(row) - j;
          if (p[j] > 0) h -= p[j] * std::log(p[j]);
          all += p[j];
          if (j < 2) sink += p[j];
          if (d < 5 && j >= 2) local += p[j];
          if (d >= 16 && d < 32 && j >= 2) far += p[j];
          if (j >= 70 && j < 90) b += p[j];
        }
        if (all < 1 - 1e-9) h -= (1 - all) * std::log(1 - all);
        entropy += h;
        support += std::exp(h);
        rows.push_back(p);
        const std::size_t readable =
            window > 0 ? std::min(p.size(), static_cast<std::size_t>(window)) : p.size();
        std::sort(p.begin(), p.end(), std::greater<>());
        for (std::size_t i = 0; i < 4; ++i) top4 += p[i];
        for (std::size_t i = 0; i < (readable + 4) / 5; ++i) share20 += p[i];
      }
      const double n = 21;
      CHECK(head.prompt.rows == 21);
      CHECK(head.decode.rows == 16);
      CHECK(head.prompt.sink == Approx(sink / n).margin(1e-6));
      CHECK(head.prompt.local == Approx(local / n).margin(1e-6));
      CHECK(head.prompt.distance[5] == Approx(far / n).margin(1e-6));
      CHECK(head.prompt.spans[1] == Approx(b / n).margin(1e-6));
      CHECK(head.prompt.entropy == Approx(entropy / n).margin(1e-5));
      CHECK(head.prompt.support == Approx(support / n).epsilon(1e-5));
      CHECK(head.prompt.top[1] == Approx(top4 / n).margin(1e-6));
      CHECK(head.prompt.top_shares[2] == Approx(share20 / n).margin(1e-6));
      if (window > 0) continue;  // the twin's overlap counts keys without mass
      const auto mass = window_mass(rows, 96);
      std::vector<double> decode(96);
      for (std::int64_t row = 80; row < 96; ++row) {
        const auto p = row_of(spec, spec.layers[l], q, row, window);
        for (std::size_t j = 0; j < p.size(); ++j) decode[j] += p[j];
      }
      // 21 rows: windows begin at rows 0, 6, 11, 16.
      const std::size_t begin[] = {0, 6, 11, 16};
      double persistence = 0;
      for (std::size_t w = 0; w < 3; ++w)
        persistence +=
            overlap(mass[w], mass[w + 1], static_cast<std::size_t>(sampled[begin[w]])) / 3;
      REQUIRE(head.persistence);
      CHECK(*head.persistence == Approx(persistence));
      REQUIRE(head.into_decode);
      CHECK(*head.into_decode ==
            Approx(overlap(mass[3], decode, static_cast<std::size_t>(sampled[begin[3]]))));
    }
  }
}

TEST_CASE("a score trace bounds the statistics of the whole attention", "[trace_stats]") {
  // Of 40 keys the 6 largest are kept; truth from the same rows stored whole.
  test::TraceSpec spec = test::random_spec(
      {.tokens = 40, .prompt_tokens = 36, .query_heads = 1, .head_dim = 8, .seed = 3});
  test::TraceSpec cut;
  cut.meta = spec.meta;
  cut.layers.resize(1);
  for (std::int64_t row = 0; row < 40; ++row) {
    const auto p = row_of(spec, spec.layers[0], 0, row, 0);
    std::vector<std::int32_t> order;
    for (std::size_t j = 0; j < p.size(); ++j) order.push_back(static_cast<std::int32_t>(j));
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      return p[static_cast<std::size_t>(a)] > p[static_cast<std::size_t>(b)];
    });
    order.resize(6, -1);
    cut.layers[0].rows.push_back(row);
    for (const std::int32_t j : order) {
      cut.layers[0].index.push_back(j);
      cut.layers[0].prob.push_back(j < 0 ? 0 : p[static_cast<std::size_t>(j)]);
    }
    cut.layers[0].lse.push_back(0);
  }
  const TraceStatsOptions options{.sinks = 4, .window = 8, .rows = 64, .from = 12, .layers = {}};
  const RowStats whole = trace_stats(test::make_trace(spec), options).layers[0].heads[0].prompt;
  const RowStats known = trace_stats(test::make_trace(cut), options).layers[0].heads[0].prompt;
  CHECK(known.residual > 0.1);
  CHECK(known.residual < 0.9);
  const auto bounds = [&](double low, double truth) {
    CHECK(low <= truth + 1e-6);
    CHECK(truth <= low + known.residual + 1e-6);
  };
  bounds(known.sink, whole.sink);
  bounds(known.local, whole.local);
  for (std::size_t b = 0; b < known.distance.size(); ++b)
    bounds(known.distance[b], whole.distance[b]);
  CHECK(known.top[1] == Approx(whole.top[1]));  // 4 of the 6 that are kept
  CHECK(known.entropy < whole.entropy);
  CHECK(known.entropy_max > whole.entropy);
  CHECK(known.entropy_max - known.entropy < 1);
}

TEST_CASE("statistics refuse layers and rows that are not there", "[trace_stats]") {
  const Trace trace = weighted(std::vector<double>(12, 1.0), 10);
  const auto with = [](std::int64_t rows, RowIndex from, std::vector<int> layers) {
    return TraceStatsOptions{.rows = rows, .from = from, .layers = std::move(layers)};
  };
  CHECK_THROWS_AS(trace_stats(trace, with(8, 0, {3})), ConfigError);
  CHECK_THROWS_AS(trace_stats(trace, with(8, 12, {})), ConfigError);
  CHECK_THROWS_AS(trace_stats(trace, with(-1, 0, {})), ConfigError);
  // Rows of the decode phase only.
  CHECK(trace_stats(trace, with(8, 10, {})).layers[0].heads[0].prompt.rows == 0);
}

TEST_CASE("the bundled pass-key trace shows sinks and one retrieval head", "[trace_stats]") {
  // Expected values: an independent program in fp64 over the 12 rows of the answer.
  const Trace trace = Trace::open(KVSPAN_TRACES_DIR "/smollm2-passkey.safetensors");
  const TraceStats stats = trace_stats(trace, {.rows = 12, .layers = {20, 26}});
  const auto mean_sink = [&](std::size_t layer) {
    double sum = 0;
    for (const HeadStats& head : stats.layers[layer].heads) sum += head.decode.sink;
    return sum / 9;
  };
  CHECK(mean_sink(0) == Approx(0.452).margin(0.002));
  CHECK(mean_sink(1) == Approx(0.685).margin(0.002));
  CHECK(stats.layers[0].heads[3].decode.spans[0] == Approx(0.93).margin(0.005));
  CHECK(stats.layers[0].heads[3].head_class == HeadClass::retrieval);
}
