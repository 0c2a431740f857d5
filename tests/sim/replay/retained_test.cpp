// SPDX-License-Identifier: Apache-2.0
// Intervals of retained attention on score traces, against a full softmax in doubles of the same
// attention and the same death rows.
#include "sim/replay/retained.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <catch2/catch.hpp>
#include <fmt/format.h>

#include "sim/report/listing.h"
#include "sim/run/run.h"
#include "tests/support/trace_builder.h"

using namespace kvspan;

namespace {

constexpr std::int64_t kTokens = 90;
constexpr std::int64_t kPrompt = 60;
constexpr int kHeads = 4;
constexpr int kDim = 6;

// [layers][query heads][rows][keys], sink excluded from the keys but not from the sum.
using Attention = std::vector<std::vector<std::vector<std::vector<double>>>>;

Attention attention_of(const test::TraceSpec& spec) {
  Attention out;
  for (std::size_t l = 0; l < spec.layers.size(); ++l) {
    const test::LayerSpec& layer = spec.layers[l];
    const std::int64_t window = spec.meta.sliding_window.empty() ? 0 : spec.meta.sliding_window[l];
    auto& heads = out.emplace_back();
    for (int q = 0; q < kHeads; ++q) {
      auto& rows = heads.emplace_back();
      for (std::int64_t i = 0; i < kTokens; ++i) {
        std::vector<double> p(static_cast<std::size_t>(i + 1), 0.0);
        double sum = layer.sink_logits.empty()
                         ? 0.0
                         : std::exp(layer.sink_logits[static_cast<std::size_t>(q)]);
        for (std::int64_t j = window == 0 ? 0 : std::max<std::int64_t>(0, i - window + 1); j <= i;
             ++j) {
          double z = 0;
          for (int d = 0; d < kDim; ++d) {
            z += layer.q[static_cast<std::size_t>((i * kHeads + q) * kDim + d)] *
                 layer.k[static_cast<std::size_t>((j * 2 + q / 2) * kDim + d)];
          }
          p[static_cast<std::size_t>(j)] = std::exp(z / std::sqrt(kDim));
          sum += p[static_cast<std::size_t>(j)];
        }
        for (double& value : p) value /= sum;
        rows.push_back(std::move(p));
      }
    }
  }
  return out;
}

// What a capture with K keys a row writes; keep 0: whole rows.
test::TraceSpec score_spec(const test::TraceSpec& full, const Attention& attention, int keep,
                           Dtype dtype) {
  test::TraceSpec out;
  out.meta = test::completed(full);
  out.score_dtype = dtype;
  for (std::size_t l = 0; l < attention.size(); ++l) {
    test::LayerSpec& layer = out.layers.emplace_back();
    layer.sink_logits = full.layers[l].sink_logits;
    for (std::int64_t i = 0; i < kTokens; ++i) {
      layer.rows.push_back(i);
      for (std::size_t q = 0; q < attention[l].size(); ++q) {
        const std::vector<double>& p = attention[l][q][static_cast<std::size_t>(i)];
        const double keys = std::accumulate(p.begin(), p.end(), 0.0);
        // sink = exp(logit - lse), and keys + sink = 1.
        layer.lse.push_back(layer.sink_logits.empty() ? 0.0
                                                      : layer.sink_logits[q] - std::log(1 - keys));
        if (keep == 0) {
          layer.dense.insert(layer.dense.end(), p.begin(), p.end());
          layer.dense.insert(layer.dense.end(), static_cast<std::size_t>(kTokens - i - 1), 0.0);
          continue;
        }
        std::vector<std::int32_t> order(p.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
          return p[static_cast<std::size_t>(a)] > p[static_cast<std::size_t>(b)];
        });
        for (std::size_t k = 0; k < static_cast<std::size_t>(keep); ++k) {
          const bool there = k < order.size() && p[static_cast<std::size_t>(order[k])] > 0;
          layer.prob.push_back(there ? p[static_cast<std::size_t>(order[k])] : 0.0);
          layer.index.push_back(there ? order[k] : -1);
        }
      }
    }
  }
  return out;
}

// Retained attention under given deaths, in doubles: [layers][query heads][rows].
std::vector<std::vector<std::vector<double>>> true_masses(const Attention& attention,
                                                          const Ledger& ledger) {
  std::vector<std::vector<std::vector<double>>> out;
  for (int l = 0; l < ledger.layers; ++l) {
    auto& heads = out.emplace_back();
    for (int q = 0; q < kHeads; ++q) {
      const auto deaths = ledger.deaths(l, q * ledger.heads / kHeads);
      auto& rows = heads.emplace_back();
      for (const std::vector<double>& p :
           attention[static_cast<std::size_t>(l)][static_cast<std::size_t>(q)]) {
        double read = 0;
        for (std::size_t j = 0; j < p.size(); ++j) read += deaths[j] >= p.size() ? p[j] : 0.0;
        rows.push_back(read / std::accumulate(p.begin(), p.end(), 0.0));
      }
    }
  }
  return out;
}

void check_inside(double low, double value, double high) {
  CHECK(low <= value + 2e-6);  // the trace's numbers are floats
  CHECK(value <= high + 2e-6);
  CHECK(low <= high);
}

struct Widths {
  double sum = 0;
  int runs = 0;
};

// Every figure of a run on a score trace lies on the right sides of the true one.
void check_run(const RunResult& run, const Attention& attention, Widths& widths) {
  const auto truth = true_masses(attention, run.ledger);
  const Fidelity& f = *run.fidelity;
  REQUIRE(f.decode->mass_upper);
  std::vector<double> decode;
  for (std::size_t l = 0; l < truth.size(); ++l) {
    double layer = 0;
    for (std::size_t q = 0; q < truth[l].size(); ++q) {
      const double head = std::accumulate(truth[l][q].begin() + kPrompt, truth[l][q].end(), 0.0) /
                          (kTokens - kPrompt);
      check_inside(f.head_mass[l][q], head, f.head_mass_upper[l][q]);
      layer += head / kHeads;
      decode.insert(decode.end(), truth[l][q].begin() + kPrompt, truth[l][q].end());
    }
    check_inside(f.layer_mass[l], layer, f.layer_mass_upper[l]);
  }
  for (std::size_t row = 0; row < kTokens; ++row) {
    double mean = 0;
    for (const auto& heads : truth) {
      for (const auto& rows : heads) mean += rows[row] / static_cast<double>(kHeads * truth.size());
    }
    check_inside(static_cast<double>(f.row_mass[row]), mean,
                 static_cast<double>(f.row_mass_upper[row]));
  }
  std::sort(decode.begin(), decode.end());
  const double mean =
      std::accumulate(decode.begin(), decode.end(), 0.0) / static_cast<double>(decode.size());
  const auto rank = static_cast<std::size_t>(std::ceil(0.05 * static_cast<double>(decode.size())));
  check_inside(f.decode->mass_mean, mean, f.decode->mass_upper->mean);
  check_inside(f.decode->mass_p5, decode[rank - 1], f.decode->mass_upper->p5);
  check_inside(f.decode->mass_min, decode.front(), f.decode->mass_upper->min);
  widths.sum += f.decode->mass_upper->mean - f.decode->mass_mean;
  ++widths.runs;
}

test::TraceSpec full_spec(bool windowed, bool sinks) {
  test::TraceSpec spec = test::random_spec({.layers = 2,
                                            .tokens = kTokens,
                                            .prompt_tokens = kPrompt,
                                            .query_heads = kHeads,
                                            .kv_heads = 2,
                                            .head_dim = kDim,
                                            .seed = 11});
  if (windowed) spec.meta.sliding_window = {0, 40};
  for (test::LayerSpec& layer : spec.layers) {
    for (double& q : layer.q) q *= 2;  // some keys matter
    if (sinks) layer.sink_logits = {0.5, 1, -1, 2};
  }
  return spec;
}

}  // namespace

TEST_CASE("a row's interval follows from what is stored, by hand", "[retained]") {
  // Keys 0 to 5; stored are 0.5, 0.2 and 0.1, so that keys 3, 4 and 5 share 0.2, at most 0.1 each.
  const std::vector<float> terms{0.5F, 0.2F, 0.1F, 0, 0, 0};
  RowTerms row;
  row.terms = terms.data();
  row.sum = 1;
  row.cut = {0.8, 3, 1.0, 0.1, 0, 0};
  const auto interval = [&](std::vector<float> mask) {
    return retained_interval(row, mask.data(), 0, 6);
  };
  const auto near = [](double value) { return Approx(value).margin(1e-7); };
  CHECK(interval({1, 0, 0, 1, 0, 0}).low == near(0.5));
  CHECK(interval({1, 0, 0, 1, 0, 0}).high == near(0.6));
  // What is gone has at most 0.1 + 0.1, so that more is left than the stored 0.7.
  CHECK(interval({1, 1, 0, 1, 1, 0}).low == near(0.8));
  CHECK(interval({1, 1, 0, 1, 1, 0}).high == near(0.9));
  // Every key without a term is read, or none is: nothing is open.
  CHECK(interval({1, 0, 0, 1, 1, 1}).low == near(0.7));
  CHECK(interval({1, 0, 0, 1, 1, 1}).high == near(0.7));
  CHECK(interval({1, 1, 0, 0, 0, 0}).low == near(0.7));
  CHECK(interval({1, 1, 0, 0, 0, 0}).high == near(0.7));
  // Rounding: 0.7 of the keys that are read, 0.1 of those that are not, 1 % each.
  row.cut = {0.8, 3, 1.0, 0.1, 0.01, 0};
  CHECK(interval({1, 1, 0, 0, 0, 0}).low == near(0.693));
  CHECK(interval({1, 1, 0, 0, 0, 0}).high == near(0.707));
  // Dense rows add up to what is stored.
  row.cut = {0.8, 3, 0, 0, 0, 0};
  CHECK(interval({1, 1, 0, 0, 0, 0}).low == near(0.7 / 0.8));
  CHECK(interval({1, 1, 0, 0, 0, 0}).high == near(0.7 / 0.8));
}

TEST_CASE("intervals of a score trace contain what the full rows retain", "[retained]") {
  // The bug was: the lower end was printed as the value.
  const bool windowed = GENERATE(false, true);
  const bool sinks = GENERATE(false, true);
  const Dtype dtype = GENERATE(Dtype::f32, Dtype::f16);
  const test::TraceSpec full = full_spec(windowed, sinks);
  const Attention attention = attention_of(full);
  const Trace qkv = test::make_trace(full);
  double narrower = 1;
  for (const int keep : {4, 12, 40, 0}) {
    const Trace scores = test::make_trace(score_spec(full, attention, keep, dtype));
    Widths widths;
    int same = 0;
    for (const char* policy :
         {"full", "streaming_llm(sinks=2,window=16)", "tova(budget=20)", "h2o(budget=20)",
          "snapkv(budget=20,window=4)", "snapkv(budget=20,window=4,group=none)",
          "random(budget=20)", "chunked(snapkv(budget=30%,window=4))",
          "adakv(snapkv(budget=20,window=4))", "duoattention(sinks=2,window=8)"}) {
      INFO(fmt::format("{}, {} keys, windowed {}, sinks {}, {}", policy, keep, windowed, sinks,
                       dtype_name(dtype)));
      EngineOptions options;
      options.chunk = 15;
      const RunResult cut = run_policies(scores, {parse_spec(policy)}, options, {})[0];
      check_run(cut, attention, widths);
      const RunResult whole = run_policies(qkv, {parse_spec(policy)}, options, {})[0];
      CHECK_FALSE(whole.fidelity->decode->mass_upper);
      CHECK(whole.fidelity->row_mass_upper.empty());
      if (cut.ledger.death != whole.ledger.death) continue;
      ++same;
      check_inside(cut.fidelity->decode->mass_mean, whole.fidelity->decode->mass_mean,
                   cut.fidelity->decode->mass_upper->mean);
    }
    CHECK(same >= 3);
    const double width = widths.sum / widths.runs;
    CHECK(width < narrower);  // the more keys, the less is left open
    narrower = width;
    if (keep == 0) CHECK(width < 1e-3);
  }
}

TEST_CASE("what a span lost has an upper bound on score traces", "[retained]") {
  test::TraceSpec full = full_spec(false, false);
  full.meta.spans = {{"needle", 20, 30}};
  const Attention attention = attention_of(full);
  const Trace scores = test::make_trace(score_spec(full, attention, 6, Dtype::f32));
  const RunResult run =
      run_policies(scores, {parse_spec("streaming_llm(sinks=2,window=16)")}, {}, {})[0];
  double lost = 0;
  for (int l = 0; l < 2; ++l) {
    for (int q = 0; q < kHeads; ++q) {
      const auto deaths = run.ledger.deaths(l, q / 2);
      for (std::size_t i = 30; i < kTokens; ++i) {
        const auto& p = attention[static_cast<std::size_t>(l)][static_cast<std::size_t>(q)][i];
        for (std::size_t j = 20; j < 30; ++j) lost += deaths[j] <= i ? p[j] : 0.0;
      }
    }
  }
  const SpanResult& span = run.fidelity->spans.at(0);
  const double mean = lost / (60 * 2 * kHeads);
  REQUIRE(span.mass_lost_upper);
  check_inside(span.mass_lost, mean, *span.mass_lost_upper);
  CHECK(span.mass_lost < 0.9 * mean);  // most of it is among the keys that are not stored
}

TEST_CASE("runs whose intervals overlap are not ranked", "[retained][report]") {
  const auto with = [](const char* spec, double low, std::optional<double> high) {
    RunResult run;
    run.spec = spec;
    PhaseFidelity phase;
    phase.mass_mean = low;
    if (high) phase.mass_upper = MassUpper{*high, *high, *high};
    run.fidelity.emplace();
    run.fidelity->all = run.fidelity->decode = phase;
    return run;
  };
  RunReport report;
  report.runs = {with("tova(budget=20%)", 0.8133, 0.89),
                 with("streaming_llm(budget=20%)", 0.8155, 0.86),
                 with("snapkv(budget=20%)", 0.90, 0.95), with("full", 1, 1)};
  using Pairs = std::vector<std::pair<std::size_t, std::size_t>>;
  CHECK(not_ranked(report) == Pairs{{0, 1}});
  report.runs[2].fidelity->decode->mass_mean = 0.88;
  CHECK(not_ranked(report) == Pairs{{0, 1}, {0, 2}});
  report.runs[2].bound = true;  // no method
  CHECK(not_ranked(report) == Pairs{{0, 1}});
  report.runs[1] = with("streaming_llm(budget=20%)", 0.8155, std::nullopt);
  CHECK(not_ranked(report).empty());  // a qkv trace: values
}

TEST_CASE("a retained target on a score trace gives the critical footprint as an interval",
          "[retained][match]") {
  // Positions alone decide, so that both traces have the same deaths.
  const test::TraceSpec full = full_spec(false, false);
  const Trace qkv = test::make_trace(full);
  const Trace scores = test::make_trace(score_spec(full, attention_of(full), 12, Dtype::f32));
  const MatchTarget target = parse_match("retained=0.8");
  const auto matched = [&](const Trace& trace) {
    return run_matched(trace, {parse_spec("streaming_llm")}, target, {}, {})[0];
  };
  const RunResult exact = matched(qkv);
  const RunResult cut = matched(scores);
  REQUIRE(cut.match->least_footprint);
  CHECK(*cut.match->least_footprint < cut.metrics.footprint);
  CHECK(*cut.match->least_footprint <= exact.metrics.footprint);
  CHECK(exact.metrics.footprint <= cut.metrics.footprint);
  CHECK(cut.match->reached >= 0.8);
  CHECK(*cut.match->upper > cut.match->reached);
  CHECK_FALSE(exact.match->upper);
  CHECK_FALSE(exact.match->least_footprint);
}
