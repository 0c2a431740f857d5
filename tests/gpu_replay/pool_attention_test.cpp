// SPDX-License-Identifier: Apache-2.0
// Attention from the pool: number formats by definition, one row against double precision, and a
// replay against the simulator's figures.
#include <algorithm>
#include <cmath>
#include <random>

#include <catch2/catch.hpp>

#include "gpu_replay/attention/decode_row.h"
#include "gpu_replay/pool/host_memory.h"
#include "gpu_replay/pool/kv_pool.h"
#include "gpu_replay/replay/attention_replay.h"
#include "sim/base/error.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"

using namespace kvspan;
using namespace kvspan::gpu_replay;

TEST_CASE("e4m3 is sign, four bits of exponent with bias 7, three of mantissa", "[gpu_replay]") {
  CHECK(from_e4m3(0x00) == 0);
  CHECK(from_e4m3(0x01) == std::ldexp(1.0F, -9));  // the least
  CHECK(from_e4m3(0x08) == std::ldexp(1.0F, -6));  // the least normal one
  CHECK(from_e4m3(0x38) == 1);
  CHECK(from_e4m3(0x39) == 1.125F);
  CHECK(from_e4m3(0x7e) == 448);
  CHECK(from_e4m3(0xb8) == -1);
  CHECK(std::isnan(from_e4m3(0x7f)));
  CHECK(to_e4m3(1e9F) == 0x7e);
  CHECK(to_e4m3(-460) == 0xfe);
  // Ties go to the even mantissa: between 1 and 1.125, and between 1.125 and 1.25.
  CHECK(to_e4m3(1.0625F) == 0x38);
  CHECK(to_e4m3(1.1875F) == 0x3a);
  CHECK(to_e4m3(std::ldexp(1.0F, -10)) == 0);
  CHECK(to_e4m3(std::ldexp(3.0F, -10)) == 2);
  for (int bits = 0; bits < 256; ++bits) {
    if ((bits & 0x7f) == 0x7f) continue;
    CHECK(to_e4m3(from_e4m3(static_cast<std::uint8_t>(bits))) == bits);
  }
}

TEST_CASE("a number becomes the nearest one of e4m3", "[gpu_replay][random]") {
  std::mt19937 random(5);
  std::uniform_real_distribution<float> exponent(-11, 9);
  for (int i = 0; i < 2000; ++i) {
    const float x = std::exp2(exponent(random));
    float nearest = 0;
    for (int bits = 0; bits < 0x7f; ++bits) {
      const float y = from_e4m3(static_cast<std::uint8_t>(bits));
      if (std::fabs(y - x) < std::fabs(nearest - x)) nearest = y;
    }
    CHECK(std::fabs(from_e4m3(to_e4m3(x)) - x) == std::fabs(nearest - x));
  }
}

TEST_CASE("one row of attention equals double precision, wherever entries lie",
          "[gpu_replay][random]") {
  const int seed = GENERATE(take(40, random(0, 1 << 30)));
  std::mt19937 random(static_cast<unsigned>(seed));
  const auto between = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  std::normal_distribution<float> normal;
  const int heads = between(1, 3), group = between(1, 16), k_dim = between(1, 80);
  const int v_dim = between(1, 80), tokens = between(1, 60);
  const Element element = between(0, 1) == 0 ? Element::f32 : Element::f16;
  const char* const layouts[] = {
      "ideal",    "padded", "paged1_per_head", "paged3_per_layer", "paged16_per_head_compact",
      "openvino2"};
  const char* const layout = layouts[between(0, 5)];
  INFO("seed " << seed << ", " << layout);

  HostMemory memory;
  ArenaSet arenas(memory);
  const std::int64_t bytes = (k_dim + v_dim) * bytes_of(element);
  KvPool pool({1, heads, heads * group, tokens, {{"entry", bytes, 0}}, parse_layout(layout)},
              arenas);
  std::vector<std::vector<std::vector<float>>> entries(index(heads));  // K then V
  for (TokenIndex token = 0; token < tokens; ++token) {
    pool.append(0, token);
    for (int head = 0; head < heads; ++head) {
      std::vector<float> x(index(k_dim + v_dim));
      for (float& value : x) value = static_cast<float>(between(-64, 64)) / 32;  // exact in fp16
      std::vector<std::byte> coded(index(bytes));
      encode(x, element, 1, coded);
      REQUIRE(pool.write(0, head, token, coded));
      entries[index(head)].push_back(std::move(x));
    }
  }
  // A head may lose everything, or all but one.
  std::vector<Step> steps;
  for (int head = 0; head < heads; ++head) {
    const int share = between(0, 4) * 25;
    for (TokenIndex token = 0; token < tokens; ++token) {
      if (between(1, 100) <= share) steps.push_back({.head = head, .token = token});
    }
  }
  pool.apply(0, steps, true);

  std::vector<float> q(index(heads * group * k_dim)), sinks;
  for (float& x : q) x = normal(random);
  if (between(0, 1) == 1) sinks.assign(index(heads * group), normal(random));
  std::vector<HeadTable> tables;
  for (int head = 0; head < heads; ++head) tables.push_back(pool.table_of(0, head));
  const std::vector<float> ones(index(heads), 1);
  const double softcap = between(0, 1) == 1 ? 2.5 : 0;
  DecodeResult found;
  found.output.assign(7, std::nanf(""));  // of another row
  attend_on_host(
      {heads * group, heads, k_dim, v_dim, element, 0.3, softcap, q, tables, ones, ones, sinks},
      memory, found);

  for (int h = 0; h < heads * group; ++h) {
    std::vector<double> output(index(v_dim), 0);
    double sum = sinks.empty() ? 0 : std::exp(double{sinks[index(h)]});
    for (const TokenIndex token : pool.held(0, h / group)) {
      const std::vector<float>& x = entries[index(h / group)][index(token)];
      double logit = 0;
      for (int i = 0; i < k_dim; ++i)
        logit += 0.3 * double{q[index(h * k_dim + i)]} * double{x[index(i)]};
      if (softcap > 0) logit = softcap * std::tanh(logit / softcap);
      sum += std::exp(logit);
      for (int i = 0; i < v_dim; ++i)
        output[index(i)] += std::exp(logit) * double{x[index(k_dim + i)]};
    }
    if (sum == 0) {
      CHECK(found.lse[index(h)] == -std::numeric_limits<float>::infinity());
    } else {
      CHECK(found.lse[index(h)] == Approx(std::log(sum)).margin(2e-5));
    }
    double worst = 0;
    for (int i = 0; i < v_dim; ++i) {
      const double expected = sum == 0 ? 0 : output[index(i)] / sum;
      worst = std::max(worst, std::fabs(expected - double{found.output[index(h * v_dim + i)]}));
    }
    CHECK(worst < 2e-5);
  }
}

TEST_CASE("attention from the pool is what the simulator says is left", "[gpu_replay]") {
  const Trace trace = test::random_trace(60, 40, 4);
  EngineOptions options;
  options.kv_bytes = 4;
  options.fidelity_rows = GENERATE(0, 5);
  const std::vector<RecipeSpec> specs =
      expand_policies({"full", "h2o(budget=9)", "snapkv(budget=12,window=3)",
                       "snapkv(budget=9,window=3,group=none)", "streaming_llm(budget=10)"},
                      {});
  for (const RunResult& run : run_policies(trace, specs, options, {})) {
    for (const char* layout : {"ideal", "paged16_per_head", "padded", "openvino2"}) {
      INFO(run.spec << ", " << layout);
      HostMemory memory;
      AttentionReplaySettings settings;
      settings.layout = layout;
      settings.element = Element::f32;
      settings.rows = options.fidelity_rows;
      const AttentionReplay replay = replay_attention(trace, run.ledger, memory, settings);
      const PhaseFidelity& expected = *run.fidelity->decode;
      CHECK(replay.rows == (options.fidelity_rows == 0 ? 20 : 5));
      CHECK(replay.retained == Approx(expected.mass_mean).margin(2e-6));
      CHECK(replay.error == Approx(expected.error_mean).margin(5e-6));
      CHECK(replay.bytes_read > 0);
    }
  }
}

TEST_CASE("entries in fp8 cost output error and nothing else", "[gpu_replay]") {
  const Trace trace = test::random_trace(60, 40, 4);
  EngineOptions options;
  options.kv_bytes = 1;
  const RunResult full = run_policies(trace, expand_policies({"full"}, {}), options, {})[0];
  HostMemory memory;
  AttentionReplaySettings settings;
  settings.element = Element::fp8;
  const AttentionReplay replay = replay_attention(trace, full.ledger, memory, settings);
  // Three bits of mantissa: half a step is 1/16 of a number at most, and errors average out.
  CHECK(replay.error > 0.002);
  CHECK(replay.error < 1.0 / 16);
  CHECK(replay.retained == Approx(1).margin(0.05));
  CHECK_THROWS_AS(element_of(3), ConfigError);
}
