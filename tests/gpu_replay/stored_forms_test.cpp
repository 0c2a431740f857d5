// SPDX-License-Identifier: Apache-2.0
// Entries in few bits and without some channels: the bytes by hand, numbers by a quantiser of the
// test's own, and attention over them against the simulator's stores.
#include "gpu_replay/replay/stored_forms.h"

#include <algorithm>
#include <cmath>

#include <catch2/catch.hpp>

#include "gpu_replay/pool/host_memory.h"
#include "gpu_replay/replay/attention_replay.h"
#include "sim/run/run.h"
#include "tests/support/cases.h"

using namespace kvspan;
using namespace kvspan::gpu_replay;

namespace {

using Kind = VectorFormat::Kind;

std::vector<int> numbers(std::span<const std::byte> bytes) {
  std::vector<int> out;
  for (const std::byte b : bytes) out.push_back(std::to_integer<int>(b));
  return out;
}

struct Compared {
  RunResult run;
  AttentionReplay pool;
};

// Every run of a policy beside what the pool's attention gives, in fp32.
Compared compare(const Trace& trace, const std::string& policy, const std::string& layout,
                 RowIndex chunk = 0) {
  EngineOptions options;
  options.kv_bytes = 4;
  options.chunk = chunk;
  Compared out{run_policies(trace, expand_policies({policy}, {}), options, {})[0], {}};
  HostMemory memory;
  AttentionReplaySettings settings;
  settings.policy = out.run.spec;
  settings.layout = layout;
  settings.element = Element::f32;
  out.pool = replay_attention(trace, out.run.ledger, memory, settings);
  return out;
}

}  // namespace

TEST_CASE("codes of a vector begin in the lowest bits, scale and zero follow", "[gpu_replay]") {
  // Five channels in groups of three, two bits: 0 1 3 in steps of 1; 2 and -4 in steps of 2.
  const std::vector<float> x = {0, 1, 3, 2, -4};
  const VectorFormat format{Kind::channel_groups, 2, 3};
  REQUIRE(bytes_of(format, 5, Element::f16) == 2 + 2 * 4);
  std::vector<std::byte> bytes(10);
  encode(x, format, {}, bytes);
  // Codes 0 1 3 3 0: 0b11110100, 0. fp16: 1 is 0x3c00, 2 is 0x4000, -4 is 0xc400.
  CHECK(numbers(bytes) == std::vector<int>{0xf4, 0, 0, 0x3c, 0, 0, 0, 0x40, 0, 0xc4});
  std::vector<float> back(5);
  decode(bytes, format, {}, back);
  CHECK(back == x);
}

TEST_CASE("entries of a group share the table of their scales out among them", "[gpu_replay]") {
  // Two channels, four entries, four bits: 0 to 15 in steps of 1, and 8 always.
  const std::vector<std::vector<float>> x = {{0, 8}, {15, 8}, {7.4F, 8}, {7.6F, 8}};
  const std::vector<std::span<const float>> vectors(x.begin(), x.end());
  const VectorFormat format{Kind::entry_groups, 4, 4};
  REQUIRE(bytes_of(format, 2, Element::f16) == 1 + 2);
  const auto bytes = encode_group(vectors, format);
  // Scale 1, zero 0; scale 0, zero 8 (0x4800): eight bytes, two with each entry.
  CHECK(numbers(bytes[0]) == std::vector<int>{0x00, 0x00, 0x3c});
  CHECK(numbers(bytes[1]) == std::vector<int>{0x0f, 0x00, 0x00});
  CHECK(numbers(bytes[2]) == std::vector<int>{0x07, 0x00, 0x00});
  CHECK(numbers(bytes[3]) == std::vector<int>{0x08, 0x00, 0x48});
}

TEST_CASE("channels that are left lie side by side", "[gpu_replay]") {
  const std::vector<float> x = {5, 6, 7, 8};
  const std::vector<std::int16_t> channel = {-1, 0, -1, 1};
  VectorFormat format{Kind::channels};
  format.left = 2;
  REQUIRE(bytes_of(format, 4, Element::bf16) == 4);
  std::vector<std::byte> bytes(4);
  encode(x, format, {Element::bf16, 1, channel}, bytes);
  // bf16 is the upper half of a float: 6 is 0x40c0, 8 is 0x4100.
  CHECK(numbers(bytes) == std::vector<int>{0xc0, 0x40, 0x00, 0x41});
  std::vector<float> back(4);
  decode(bytes, format, {Element::bf16, 1, channel}, back);
  CHECK(back == std::vector<float>{0, 6, 0, 8});
}

TEST_CASE("bf16 is the nearest float of eight bits, ties to even", "[gpu_replay]") {
  // 1 + 1/256 lies between 1 and 1 + 1/128; 1 + 3/256 between that and 1 + 2/128.
  const std::vector<float> x = {1 + 1 / 256.0F, 1 + 3 / 256.0F, -0.1F, 3e38F};
  std::vector<std::byte> bytes(8);
  encode(x, Element::bf16, 1, bytes);
  std::vector<float> back(4);
  decode(bytes, Element::bf16, 1, back);
  CHECK(back == std::vector<float>{1, 1 + 2 / 128.0F, -0.10009765625F, 0x1.c4p127F});
}

TEST_CASE("a store's output error from the pool is the simulator's", "[gpu_replay]") {
  const Trace trace = test::random_trace(90, 60, 8);
  const char* const layout = GENERATE("ideal", "padded", "paged16_per_head_compact", "openvino16");
  const auto [policy, chunk] = GENERATE(table<const char*, RowIndex>(
      {{"kivi(bits=2,group=16,residual=16)", 0},
       {"kivi(bits=4,group=8,residual=32)", 20},
       {"streaming_llm(budget=24)+qpruningkv(bits=8,q_group=2)", 0},
       {"qpruningkv(bits=4,budget=8)", 0},
       {"snapkv(budget=40,window=4)+kivi(bits=2,group=4,residual=8)", 0},
       {"think(ratio=50%,window=8,recent=4)", 0},
       {"think(ratio=30%,preset=kvpress)", 0}}));
  INFO(policy << " in " << layout);
  const Compared of = compare(trace, policy, layout, chunk);
  REQUIRE(of.pool.why_not.empty());
  CHECK(of.run.fidelity->decode->error_mean > 0.01);
  CHECK(of.pool.error == Approx(of.run.fidelity->decode->error_mean).margin(5e-6));
}

TEST_CASE("keys without some channels are those that the prompt's end asks for least",
          "[gpu_replay]") {
  // One head of two channels; q = (1, 3), so that squares weigh 1 to 9, and of k 8 to 1: the second
  // channel is worth more, and the first one goes.
  const Trace trace = test::one_head({{2, 1}, {2, 0}, {0, 1}, {0, 1}}, 2, {{1}, {2}, {3}, {4}},
                                     {{1, 3}, {1, 3}, {1, 3}, {1, 3}});
  const Compared of = compare(trace, "think(ratio=50%,window=2,recent=0)", "ideal");
  // Row 3: logits 3, 0 of the prompt without their 2, then 3, 3. Row 2: 3, 0, 3.
  const double e = std::exp(3.0);
  const double row2 = (e + 2 + 3 * e) / (2 * e + 1), row3 = (e + 2 + 3 * e + 4 * e) / (3 * e + 1);
  const double f5 = std::exp(5.0), f2 = std::exp(2.0);
  const double full2 = (f5 + 2 * f2 + 3 * e) / (f5 + f2 + e);
  const double full3 = (f5 + 2 * f2 + 7 * e) / (f5 + f2 + 2 * e);
  CHECK(of.pool.error ==
        Approx((std::fabs(row2 / full2 - 1) + std::fabs(row3 / full3 - 1)) / 2).margin(1e-6));
}

TEST_CASE("a group of keys that has lost an entry cannot be read", "[gpu_replay]") {
  const Trace trace = test::random_trace(90, 60, 8);
  const Compared of =
      compare(trace, "h2o(budget=40)+kivi(bits=2,group=16,residual=16)", "paged16_per_head");
  CHECK_THAT(of.pool.why_not, Catch::Contains("share scales"));
}

TEST_CASE("forms have the simulator's bytes", "[gpu_replay]") {
  const Trace trace = test::random_heads(80, 64, 4, 2, 1);
  EngineOptions options;
  options.fidelity = false;
  options.kv_bytes = GENERATE(1, 2, 4);
  const std::vector<RecipeSpec> specs = expand_policies(
      {"kivi(bits=4,residual=64)", "kivi(bits={2,4},group=8,residual=16)", "think(ratio={10%,60%})",
       "qpruningkv(bits={2,4,8},q_group={1,4,64})", "qpruningkv(bits=16)"},
      {});
  for (const RunResult& run : run_policies(trace, specs, options, {})) {
    INFO(run.spec);
    const TraceMeta& m = trace.meta();
    const Element element = element_of(options.kv_bytes);
    const StoredForms forms = stored_forms(run.spec, run.ledger, m.head_dim, m.v_head_dim, element);
    REQUIRE(forms.formats.size() == run.ledger.representations.size());
    for (std::size_t r = 0; r < forms.formats.size(); ++r) {
      CHECK(bytes_of(forms.formats[r].k, m.head_dim, element) +
                bytes_of(forms.formats[r].v, m.v_head_dim, element) ==
            run.ledger.representations[r].device_bytes);
    }
  }
  CHECK(has_stored_forms("chunked(snapkv(budget=20%))+kivi"));
  CHECK_FALSE(has_stored_forms("kvquant"));
}
