// SPDX-License-Identifier: Apache-2.0
// The CUDA path against the CPU. One text for two programs: on a GPU (kvspan_cuda_tests, built with
// nvcc, skipped where there is no device), and in the emulation of tests/support/cuda_on_cpu
// (kvspan_cuda_emulation_tests, everywhere), which says nothing of a real device.
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "tests/support/attention_case.h"
#include "tests/support/cuda_runner.h"
#include "tests/support/runner_case.h"
#include "tracegen/cuda/attention.h"
#include "tracegen/forward/runner.h"

using Catch::Matchers::Equals;
using kvspan::tracegen::AttentionProblem;
using kvspan::tracegen::Checkpoint;
using kvspan::tracegen::DeviceType;
using kvspan::tracegen::make_cpu_runner;
using kvspan::tracegen::RunnerOptions;
using namespace kvspan::tracegen::testing;

namespace {

struct Case {
  const char* name;
  DeviceType type;
  AttentionProblem problem;
  int top_k;
  double spread;  // of the logits
  double hidden;  // share of keys that nobody sees
};

// Ragged tails, pieces of a prompt, groups that do and do not divide a tile, heads below, at and
// between the compiled sizes, windows within and across tiles, more candidates than a list holds.
const Case kCases[] = {
    {"one row",
     DeviceType::f16,
     {.query_heads = 4, .kv_heads = 2, .head_dim = 64, .rows = 1},
     4,
     1,
     0},
    {"decode",
     DeviceType::bf16,
     {.query_heads = 6, .kv_heads = 2, .head_dim = 64, .first = 200, .rows = 1},
     16,
     3,
     0},
    {"ragged",
     DeviceType::f16,
     {.query_heads = 3, .kv_heads = 1, .head_dim = 40, .first = 37, .rows = 51},
     8,
     3,
     0},
    {"head 128",
     DeviceType::f16,
     {.query_heads = 2, .kv_heads = 2, .head_dim = 128, .first = 0, .rows = 130},
     32,
     4,
     0},
    {"head 96, bf16",
     DeviceType::bf16,
     {.query_heads = 2, .kv_heads = 1, .head_dim = 96, .first = 65, .rows = 33},
     5,
     2,
     0},
    {"head 256",
     DeviceType::f16,
     {.query_heads = 2, .kv_heads = 1, .head_dim = 256, .first = 11, .rows = 40},
     7,
     2,
     0},
    {"window in a tile",
     DeviceType::f16,
     {.query_heads = 2, .kv_heads = 1, .head_dim = 32, .first = 70, .rows = 75, .window = 9},
     12,
     2,
     0},
    {"window over tiles",
     DeviceType::bf16,
     {.query_heads = 2, .kv_heads = 1, .head_dim = 64, .first = 150, .rows = 70, .window = 100},
     12,
     2,
     0},
    {"hidden keys",
     DeviceType::f16,
     {.query_heads = 4, .kv_heads = 2, .head_dim = 64, .first = 20, .rows = 70},
     10,
     2,
     0.6},
    {"nearly all hidden",
     DeviceType::f32,
     {.query_heads = 2, .kv_heads = 2, .head_dim = 16, .first = 0, .rows = 70},
     3,
     2,
     0.97},
    {"fp32",
     DeviceType::f32,
     {.query_heads = 4, .kv_heads = 2, .head_dim = 64, .first = 30, .rows = 100},
     20,
     5,
     0},
    {"fp32, head 128, window",
     DeviceType::f32,
     {.query_heads = 2, .kv_heads = 1, .head_dim = 104, .first = 9, .rows = 70, .window = 33},
     20,
     3,
     0},
    {"fp32, head 256",
     DeviceType::f32,
     {.query_heads = 2, .kv_heads = 1, .head_dim = 256, .first = 5, .rows = 36},
     4,
     3,
     0},
    {"cuts",
     DeviceType::f16,
     {.query_heads = 1, .kv_heads = 1, .head_dim = 32, .first = 900, .rows = 20},
     24,
     4,
     0},
    {"many kept",
     DeviceType::f16,
     {.query_heads = 1, .kv_heads = 1, .head_dim = 32, .first = 600, .rows = 3},
     200,
     1,
     0},
    {"no top-K",
     DeviceType::f16,
     {.query_heads = 2, .kv_heads = 1, .head_dim = 64, .first = 3, .rows = 20},
     0,
     1,
     0},
};

}  // namespace

TEST_CASE("the attention kernel agrees with the fp64 reference in every shape", "[cuda]") {
  const Case& c = GENERATE(from_range(std::begin(kCases), std::end(kCases)));
  const AttentionCase input = random_case(c.type, c.problem, c.top_k, c.spread, c.hidden, 1);
  INFO(c.name);
  const AttentionResult got = attend_on_device(input);
  CHECK_THAT(worst_difference(input, attend_on_host(input), got), Equals(""));
}

TEST_CASE("equal scores keep the lower keys, however many there are", "[cuda]") {
  // Few small integers, so that all sums are exact and most scores are equal.
  const DeviceType type = GENERATE(DeviceType::f32, DeviceType::f16, DeviceType::bf16);
  const auto variety = GENERATE(0, 1);  // 0: all scores are equal
  AttentionCase input =
      random_case(type, {.query_heads = 2, .kv_heads = 1, .head_dim = 8, .first = 500, .rows = 12},
                  40, 1, 0, 5);
  round_to_integers(input, variety);
  const AttentionResult got = attend_on_device(input);
  const AttentionResult want = attend_on_host(input);
  CHECK_THAT(worst_difference(input, want, got), Equals(""));
  CHECK(got.index == want.index);
}

TEST_CASE("extreme scores neither overflow nor lose the largest", "[cuda]") {
  const AttentionCase input = random_case(
      DeviceType::f32, {.query_heads = 2, .kv_heads = 1, .head_dim = 16, .first = 100, .rows = 10},
      6, 3000, 0, 6);
  const AttentionResult got = attend_on_device(input);
  const AttentionResult want = attend_on_host(input);
  for (std::size_t i = 0; i < want.index.size(); i += 6) CHECK(got.index[i] == want.index[i]);
  for (const float x : got.out) CHECK(std::isfinite(x));
}

TEST_CASE("attention refuses head sizes and counts that it was not built for", "[cuda]") {
  const auto attend = [](int head_dim, int top_k) {
    return attend_on_device(random_case(
        DeviceType::f16, {.query_heads = 1, .kv_heads = 1, .head_dim = head_dim, .rows = 1}, top_k,
        1, 0, 1));
  };
  CHECK_THROWS_AS(attend(20, 1), kvspan::DeviceError);
  CHECK_THROWS_AS(attend(264, 1), kvspan::DeviceError);
  CHECK_THROWS_AS(attend(64, kvspan::tracegen::kMostTopK + 1), kvspan::DeviceError);
}

TEST_CASE("the CUDA runner computes what the CPU runner computes", "[cuda]") {
  const auto [name, half_precision] = GENERATE(table<std::string, bool>(
      {{"llama", false}, {"mistral", false}, {"qwen2", false}, {"qwen3", false}, {"qwen2", true}}));
  const Checkpoint checkpoint = tiny_checkpoint(name);
  const RunnerCase input = tiny_case();
  INFO(name << (half_precision ? ", half precision" : ""));
  const auto cpu = make_cpu_runner(checkpoint, {.tokens = 24});
  // A pass of three waves: a slot is used again.
  const auto cuda =
      cuda_runner(checkpoint, {.tokens = 24, .half_precision = half_precision, .wave = 5});
  CHECK_THAT(
      worst_difference(run_case(*cpu, checkpoint.spec(), input),
                       run_case(*cuda, checkpoint.spec(), input), half_precision ? 0.03 : 2e-5),
      Equals(""));
}

TEST_CASE("an exception of the hook leaves a CUDA runner usable", "[cuda]") {
  const Checkpoint checkpoint = tiny_checkpoint("llama");
  const RunnerCase input = tiny_case();
  const auto cuda = cuda_runner(checkpoint, {.tokens = 24, .wave = 5});
  kvspan::tracegen::AttentionHook none;
  std::vector<float> hidden(static_cast<std::size_t>(22 * checkpoint.spec().hidden), 0.5F);
  CHECK_THROWS_AS(cuda->layer(0, 0, hidden, none, [](double) { throw kvspan::Interrupted(); }),
                  kvspan::Interrupted);
  const auto cpu = make_cpu_runner(checkpoint, {.tokens = 24});
  CHECK_THAT(worst_difference(run_case(*cpu, checkpoint.spec(), input),
                              run_case(*cuda, checkpoint.spec(), input), 2e-5),
             Equals(""));
}
