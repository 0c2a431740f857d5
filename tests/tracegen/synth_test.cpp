// SPDX-License-Identifier: Apache-2.0
#include "tracegen/synth/synth.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <tbb/global_control.h>

#include "sim/attention/trace_stats.h"
#include "sim/base/error.h"
#include "sim/trace/trace_tools.h"
#include "tests/support/trace_builder.h"
#include "tracegen/synth/portable.h"
#include "tracegen/synth/synth_fit.h"

using namespace kvspan;
using namespace kvspan::tracegen;

namespace {

// Every head of every layer the same.
SynthProfile all_heads(const HeadProfile& head, double key_common = 3) {
  SynthProfile profile;
  profile.name = "test";
  profile.layers = {{{head}, key_common}};
  return profile;
}

SynthOptions small(std::int64_t tokens) {
  SynthOptions options;
  options.tokens = tokens;
  options.layers = 1;
  options.query_heads = 4;
  return checked(options);
}

std::uint64_t checksum(const Trace& trace) {
  std::uint64_t sum = 14695981039346656037U;  // FNV-1a
  for (const auto& [name, tensor] : trace.tensors().tensors()) {
    for (const std::byte b : tensor.bytes)
      sum = (sum ^ static_cast<std::uint64_t>(b)) * 1099511628211U;
  }
  return sum;
}

// The logit that row i gives to key j, query head 0, from the vectors of the layer.
double logit(const SynthLayer& layer, const SynthOptions& o, std::int64_t i, std::int64_t j) {
  std::vector<float> q(static_cast<std::size_t>(o.query_heads * o.head_dim));
  std::vector<float> k(static_cast<std::size_t>(o.kv_heads * o.head_dim));
  std::vector<float> unused(q.size());
  layer.token(i, q, k, {});
  layer.token(j, unused, k, {});
  double sum = 0;
  for (int c = 0; c < o.head_dim; ++c) {
    sum += static_cast<double>(q[static_cast<std::size_t>(c)]) *
           static_cast<double>(k[static_cast<std::size_t>(c)]);
  }
  return sum / std::sqrt(static_cast<double>(o.head_dim));
}

std::vector<HeadStats> measured(const SynthOptions& options, const SynthPlan& plan,
                                const SynthProfile& profile, std::int64_t rows = 64) {
  return trace_stats(synth_trace(options, plan, profile), {.rows = rows}).layers.at(0).heads;
}

}  // namespace

TEST_CASE("portable functions agree with the standard library's", "[synth]") {
  double worst = 0;
  for (int i = -4000; i <= 4000; ++i) {
    const double x = i * 0.0871;
    worst = std::max(worst, std::abs(portable::exp(x) / std::exp(x) - 1));
    worst = std::max(worst, std::abs(portable::sin_cos(x).sin - std::sin(x * 2 * M_PI)) / 1e3);
    worst = std::max(worst, std::abs(portable::sin_cos(x).cos - std::cos(x * 2 * M_PI)) / 1e3);
    const double y = std::ldexp(1.0 + std::abs(x) / 400, i % 60);
    worst = std::max(worst, std::abs(portable::log(y) - std::log(y)) / 64);
  }
  CHECK(worst < 1e-15);
  double sum = 0, squares = 0, fourth = 0;
  const int n = 100000;
  for (std::uint64_t i = 0; i < n; ++i) {
    const double x = portable::normal(portable::random_bits({7, i}));
    sum += x;
    squares += x * x;
    fourth += x * x * x * x;
  }
  CHECK(sum / n == Approx(0).margin(0.015));
  CHECK(squares / n == Approx(1).margin(0.02));
  CHECK(fourth / n == Approx(3).margin(0.15));
}

TEST_CASE("a synthetic trace has the same bits everywhere", "[synth]") {
  SynthOptions options = small(1500);
  options.layers = 2;
  options.layer_ids = {};
  options.needles = 2;
  options.turns = 3;
  options.topics = 4;
  options = checked(options);
  const SynthPlan plan = draw_plan(options);
  const SynthProfile profile = find_profile("llama-like");
  const Trace trace = synth_trace(options, plan, profile);
  // Golden: whoever changes it changes every published synthetic trace.
  CHECK(checksum(trace) == 0x6FE424322A6FB1E2U);
  {
    const tbb::global_control one(tbb::global_control::max_allowed_parallelism, 1);
    CHECK(checksum(synth_trace(options, plan, profile)) == checksum(trace));
  }
  // A token on its own, in another order.
  const SynthLayer layer(options, plan, profile, 1);
  std::vector<float> q(4 * 64), k(2 * 64), v(2 * 64), stored(4 * 64);
  for (const std::int64_t t : {1499, 0, 3, 700}) {
    layer.token(t, q, k, v);
    widen(*trace.q(1), t * 256, stored, "q");
    for (std::size_t i = 0; i < q.size(); ++i)
      REQUIRE(test::rounded_to(static_cast<double>(q[i]), Dtype::f16) ==
              static_cast<double>(stored[i]));
  }
  options.seed = 2;
  CHECK(checksum(synth_trace(options, draw_plan(options), profile)) != checksum(trace));
}

TEST_CASE("a written synthetic trace is valid and says what it is", "[synth]") {
  SynthOptions options = small(1100);
  options.needles = 3;
  const SynthPlan plan = draw_plan(options);
  const SynthProfile profile = find_profile("retrieval");
  const auto folder = std::filesystem::temp_directory_path();
  const auto path = folder / "kvspan_synth_test.safetensors";
  write_synth(options, plan, profile, path);
  const Trace trace = Trace::open(path);
  CHECK(checksum(trace) == checksum(synth_trace(options, plan, profile)));
  CHECK_FALSE(check_trace(trace).empty());
  CHECK(trace.meta().model == "synthetic (retrieval)");
  CHECK(trace.meta().source == "synthetic: kvspan synth, profile retrieval, seed 1");
  CHECK(trace.meta().spans.size() == 6);
  CHECK(trace.meta().rope.value().dim == 32);
  std::filesystem::remove(path);
  // Stopped half-way: nothing is left.
  CHECK_THROWS_AS(write_synth(options, plan, profile, path, [](double) { throw Interrupted(); }),
                  Interrupted);
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    CHECK(entry.path().filename().string().find("kvspan_synth_test") == std::string::npos);
}

TEST_CASE("the uniform profile reads all keys alike", "[synth]") {
  const SynthOptions options = small(300);
  for (const HeadStats& head : measured(options, {}, find_profile("uniform"), 1)) {
    CHECK(head.prompt.entropy == Approx(std::log(282.0)));  // the last row of 15/16 of 300 tokens
    CHECK(head.prompt.top[0] == Approx(1 / 282.0));
  }
}

TEST_CASE("measured sink and needle mass are what was asked for", "[synth]") {
  // 12,000 tokens: keys beyond distance 2,048 are sampled by the calibration.
  const std::int64_t tokens = GENERATE(1500, 12000);
  SynthOptions options = small(tokens);
  options.needles = 2;
  options.topics = 3;
  const SynthPlan plan = draw_plan(options);
  const SynthProfile profile = find_profile("llama-like");
  const SynthLayer layer(options, plan, profile, 0);
  const Trace trace = synth_trace(options, plan, profile);
  const TraceStats stats = trace_stats(trace, {.rows = 100});
  for (std::size_t h = 0; h < 4; ++h) {
    const HeadProfile& asked = layer.profile().heads[h];
    const HeadStats& head = stats.layers[0].heads[h];
    CHECK(head.prompt.sink == Approx(asked.sink.value()).margin(0.04));
    // Half of the decode rows look for each needle.
    CHECK(head.decode.spans[0] + head.decode.spans[1] == Approx(asked.needle.value()).margin(0.05));
  }
}

TEST_CASE("each channel gives the logit of its formula", "[synth]") {
  const SynthOptions options = small(2000);
  const double scale_error = 1e-5;
  {
    SynthPlan plan;
    plan.topics = {{0, 0}, {1000, 1}, {1500, 0}};
    const SynthLayer layer(options, plan, all_heads({.topics = 2}), 0);
    CHECK(logit(layer, options, 900, 100) == Approx(2).epsilon(scale_error));
    CHECK(logit(layer, options, 1900, 100) == Approx(2).epsilon(scale_error));  // it returns
    CHECK(logit(layer, options, 1900, 1200) < 1.99);
    // Half-way through the change: half of one and half of the other.
    CHECK(logit(layer, options, 900, 1032) ==
          Approx((2 + logit(layer, options, 900, 1400)) / 2).epsilon(scale_error));
  }
  {
    // Locality: differences of logits follow the curve within the mixture's ringing (and the cusp
    // at distance 0 is followed least).
    HeadProfile head;
    head.locality = {0};
    for (int d = 1; d < 2000; d *= 2) head.locality.push_back(-1.5 * std::log(1.0 + d));
    const SynthLayer layer(options, {}, all_heads(head), 0);
    const double near = logit(layer, options, 1900, 1896);
    for (const int d : {0, 32, 256, 1024}) {
      CHECK(logit(layer, options, 1900, 1900 - d) - near ==
            Approx(-1.5 * std::log((1.0 + d) / 5)).margin(1.2));
    }
    // It depends on the distance only.
    CHECK(logit(layer, options, 1900, 1000) == Approx(logit(layer, options, 1000, 100)));
  }
  {
    // Hitters: the same logit from every row, up to a constant of the row.
    const SynthLayer layer(options, {}, all_heads({.hitters = 1.5}), 0);
    std::vector<double> from_first, from_second;
    for (int j = 4; j < 1500; ++j) {
      from_first.push_back(logit(layer, options, 1600, j));
      from_second.push_back(logit(layer, options, 1999, j));
    }
    CHECK(from_first == from_second);
    double mean = 0, square = 0;
    for (const double z : from_first) mean += z / static_cast<double>(from_first.size());
    for (const double z : from_first)
      square += (z - mean) * (z - mean) / static_cast<double>(from_first.size());
    // Half of the variance is of words, of which a few are frequent: it varies from draw to draw.
    CHECK(std::sqrt(square) == Approx(1.5).margin(0.4));
  }
}

TEST_CASE("channels have the entropy and persistence that their formulas say", "[synth]") {
  // Normal logits of deviation s over n keys: entropy ln n - s^2 / 2.
  const SynthOptions options = small(2000);
  const auto hitters = measured(options, {}, all_heads({.hitters = 1}));
  const auto content = measured(options, {}, all_heads({.content = 1}));
  const auto both = measured(options, {}, all_heads({.hitters = 1, .content = 1}));
  const auto plain = measured(options, {}, all_heads({}));
  for (std::size_t h = 0; h < 4; ++h) {
    CHECK(plain[h].prompt.entropy - hitters[h].prompt.entropy == Approx(0.5).margin(0.12));
    CHECK(plain[h].prompt.entropy - content[h].prompt.entropy == Approx(0.5).margin(0.12));
    CHECK(plain[h].prompt.entropy - both[h].prompt.entropy == Approx(1).margin(0.2));
    CHECK(hitters[h].persistence.value() > 0.97);
    CHECK(content[h].persistence.value() < 0.35);
    CHECK(both[h].persistence.value() < hitters[h].persistence.value());
  }
}

TEST_CASE("key_common decides whether important keys are short or long", "[synth]") {
  const SynthOptions options = small(800);
  const double common = GENERATE(4.0, -4.0);
  const SynthLayer layer(options, {}, all_heads({.hitters = 1}, common), 0);
  std::vector<float> q(4 * 64), k(2 * 64);
  double covariance = 0, norm_mean = 0;
  std::vector<double> norms, logits;
  for (int j = 4; j < 700; ++j) {
    layer.token(j, q, k, {});
    double square = 0;
    for (int c = 0; c < 64; ++c) {
      const auto x = static_cast<double>(k[static_cast<std::size_t>(c)]);
      square += x * x;
    }
    norms.push_back(std::sqrt(square));
    logits.push_back(logit(layer, options, 750, j));
    norm_mean += norms.back() / 696;
  }
  for (std::size_t i = 0; i < norms.size(); ++i) covariance += (norms[i] - norm_mean) * logits[i];
  CHECK(covariance * common < 0);
}

TEST_CASE("plans keep needles apart and inside the prompt", "[synth]") {
  SynthOptions options = small(4000);
  options.needles = GENERATE(1, 7, 40);
  options.turns = 5;
  options.topics = 6;
  options.seed = static_cast<std::uint64_t>(GENERATE(1, 2, 3));
  const SynthPlan plan = draw_plan(options);
  REQUIRE(plan.needles.size() == static_cast<std::size_t>(options.needles));
  std::int64_t end = 4;
  for (const Span& needle : plan.needles) {
    CHECK(needle.begin >= end);
    end = needle.end;
  }
  CHECK(end <= plan.questions.front().begin);
  CHECK(plan.questions.back().end == options.prompt_tokens);
  CHECK(plan.turns.front().begin == 0);
  CHECK(plan.turns.back().end == options.prompt_tokens);
  for (std::size_t i = 1; i < plan.turns.size(); ++i)
    CHECK(plan.turns[i].begin == plan.turns[i - 1].end);
  options.needles = 200;
  CHECK_THROWS_WITH(draw_plan(options), Catch::Contains("too short for 200 needles"));
}

TEST_CASE("profiles are read strictly and written back", "[synth]") {
  for (const SynthProfile& profile : built_in_profiles()) {
    const auto text = to_json(profile);
    CHECK(to_json(parse_profile(text.dump(), "copy")) == text);
  }
  const auto message = [](const char* text) -> std::string {
    try {
      (void)parse_profile(text, "p.json");
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  };
  CHECK(message(R"({"kinds":[{"sinc":0.5}]})") ==
        "p.json: kinds[0]: unknown key 'sinc'; did you mean 'sink'?");
  CHECK_THAT(message(R"({"kinds":[{"sink":[0.5,2]}]})"),
             Catch::Contains("'sink'") && Catch::Contains("from 0 to 1, not '2'"));
  CHECK_THAT(message(R"({"kinds":[{"decay":[2,1]}]})"), Catch::Contains("smaller number first"));
  CHECK_THAT(message(R"({"layers":[{"heads":[{"locality":[1,"a"]}]}]})"),
             Catch::Contains("layers[0].heads[0]"));
  for (const char* text : {"", "[]", "{}", "{\"kinds\":[]}", "{\"kinds\":{}}", "{\"layers\":[{}]}",
                           "{\"layers\":[{\"heads\":[1]}]}", "{\"kinds\":[{}],\"layers\":[]}",
                           "{\"kinds\":[{\"share\":0}]}", "{\"name\":1,\"kinds\":[{}]}",
                           "{\"key_common\":1e999,\"kinds\":[{}]}"})
    CHECK_THAT(message(text), Catch::StartsWith("p.json"));
  const std::string open(200'000, '[');
  const std::string deep = R"({"key_common":)" + open + std::string(open.size(), ']') + "}";
  CHECK_THAT(message(deep.c_str()), Catch::Contains("p.json is nested deeper than 8"));
  CHECK_THAT(message(R"({"a\nb":0,"kinds":[{}]})"), Catch::Contains("unknown key 'a\\x0ab'"));
  CHECK_THROWS_WITH(find_profile("lama-like"), Catch::Contains("llama-like"));
  CHECK_THROWS_AS(find_profile("/nowhere/p.json"), ConfigError);
  for (const auto change :
       {+[](SynthOptions& o) { o.tokens = 5; }, +[](SynthOptions& o) { o.prompt_tokens = 5000; },
        +[](SynthOptions& o) { o.kv_heads = 3; }, +[](SynthOptions& o) { o.head_dim = 30; },
        +[](SynthOptions& o) { o.layers = 0; },
        +[](SynthOptions& o) { o.tokens = std::int64_t{1} << 31U; }}) {
    SynthOptions options;
    change(options);
    CHECK_THROWS_AS(checked(options), ConfigError);
  }
}

TEST_CASE("a fit recovers the statistics of a trace whose heads differ", "[synth]") {
  SynthOptions options = small(600);
  options.needles = 1;
  options.seed = 5;
  const SynthProfile profile = find_profile("llama-like");
  const Trace truth = synth_trace(options, draw_plan(options), profile);
  const SynthFit fit = fit_synth(truth, "truth", 9);
  REQUIRE(fit.profile.layers.size() == 1);
  for (const FitLine& line : fit_lines(fit, 0)) {
    INFO(line.what << ": " << line.real << " / " << line.synthetic << ", " << line.difference);
    if (line.what == "sink mass" || line.what == "needle, decode") CHECK(line.difference < 0.06);
    if (line.what == "mass at another distance") CHECK(line.difference < 0.1);
    if (line.what == "entropy") CHECK(line.difference < 0.5);
    if (line.what == "persistence") CHECK(line.difference < 0.15);
  }
  // What is reported is what the profile gives.
  const TraceStats again = trace_stats(synth_trace(fit.options, fit.plan, fit.profile), {});
  CHECK(kvspan::to_json(again) == kvspan::to_json(fit.synthetic));
  CHECK(to_json(parse_profile(to_json(fit.profile).dump(), "p")) == to_json(fit.profile));
  CHECK_THROWS_WITH(
      fit_synth(Trace::open(KVSPAN_TRACES_DIR "/tiny-scores.safetensors"), "scores", 1),
      Catch::Contains("needs q and k"));
}
