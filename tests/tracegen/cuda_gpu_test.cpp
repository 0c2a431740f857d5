// SPDX-License-Identifier: Apache-2.0
// What is too much for the emulation: real sizes.
#include <cstdint>

#include <catch2/catch.hpp>

#include "tests/support/attention_case.h"
#include "tests/support/cuda_runner.h"
#include "tests/support/runner_case.h"
#include "tracegen/forward/runner.h"

using Catch::Matchers::Equals;
using kvspan::tracegen::Checkpoint;
using kvspan::tracegen::DeviceType;
using kvspan::tracegen::make_cpu_runner;
using namespace kvspan::tracegen::testing;

TEST_CASE("the attention kernel agrees with the fp64 reference over 8,192 keys", "[cuda]") {
  const DeviceType type = GENERATE(DeviceType::f32, DeviceType::f16, DeviceType::bf16);
  const int head_dim = GENERATE(64, 128, 256);
  const AttentionCase input = random_case(
      type, {.query_heads = 8, .kv_heads = 2, .head_dim = head_dim, .first = 8192 - 48, .rows = 48},
      64, 4, 0, 7);
  CHECK_THAT(worst_difference(input, attend_on_host(input), attend_on_device(input)), Equals(""));
}

TEST_CASE("the bundled model's logits, q, k, v and scores are the CPU's", "[cuda]") {
  const bool half_precision = GENERATE(false, true);
  const Checkpoint checkpoint = Checkpoint::open(KVSPAN_MODELS_DIR "/minimind2-small");
  RunnerCase input = tiny_case();
  input.ids.clear();
  for (std::int32_t i = 0; i < 1500; ++i)
    input.ids.push_back(1 + i * 7919 % static_cast<std::int32_t>(checkpoint.spec().vocabulary - 1));
  input.ends = {1400, 1499, 1500};
  const auto cpu = make_cpu_runner(checkpoint, {.tokens = 1500});
  const auto cuda =
      cuda_runner(checkpoint, {.tokens = 1500, .half_precision = half_precision, .wave = 512});
  CHECK_THAT(
      worst_difference(run_case(*cpu, checkpoint.spec(), input),
                       run_case(*cuda, checkpoint.spec(), input), half_precision ? 0.1 : 1e-3),
      Equals(""));
}
