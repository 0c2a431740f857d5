// SPDX-License-Identifier: Apache-2.0
// What only the emulation can do to the CUDA path: change the order of threads, or the device.
#include <cuda_runtime.h>
#include <span>
#include <vector>

#include <catch2/catch.hpp>

#include "sim/error.h"
#include "tests/support/attention_case.h"
#include "tests/support/runner_case.h"
#include "tracegen/runner.h"

using Catch::Matchers::Contains;
using Catch::Matchers::Equals;
using kvspan::cuda_on_cpu::set_device_memory;
using kvspan::cuda_on_cpu::set_schedule;
using kvspan::tracegen::Checkpoint;
using kvspan::tracegen::DeviceType;
using kvspan::tracegen::make_cpu_runner;
using kvspan::tracegen::make_cuda_runner;
using kvspan::tracegen::RunnerOptions;
using namespace kvspan::tracegen::testing;

TEST_CASE("the attention kernel's bits do not depend on the order of threads", "[cuda]") {
  const DeviceType type = GENERATE(DeviceType::f32, DeviceType::f16);
  const AttentionCase input =
      random_case(type, {.query_heads = 4, .kv_heads = 2, .head_dim = 64, .first = 280, .rows = 20},
                  4, 4, 0, 3);
  set_schedule(0);
  const AttentionResult ascending = attend_on_device(input);
  for (const std::uint64_t seed : {1U, 2U}) {
    set_schedule(seed);
    CHECK(same_bits(attend_on_device(input), ascending));
  }
}

TEST_CASE("the CUDA runner keeps keys, hides keys and takes layers in turn", "[cuda]") {
  const Checkpoint checkpoint = tiny_checkpoint("qwen3");
  RunnerCase input = tiny_case();
  input.by_layer = false;
  // The device holds all layers, or the weights of one at a time.
  const bool all_layers = GENERATE(false, true);
  input.hide = all_layers;
  set_device_memory(std::size_t{all_layers ? 1024U : 16U} << 20);
  const RunnerOptions options = {.tokens = 24, .keep_kv = true, .wave = 16};
  const auto cpu = make_cpu_runner(checkpoint, options);
  const auto cuda = make_cuda_runner(checkpoint, options);
  CHECK_THAT(cuda->description(), Contains(all_layers ? "all layers" : "one layer"));
  const auto want = run_case(*cpu, checkpoint.spec(), input);
  CHECK_THAT(worst_difference(want, run_case(*cuda, checkpoint.spec(), input), 2e-5), Equals(""));

  // Another process: keys and values are restored, and the last row runs again.
  const auto fresh = make_cuda_runner(checkpoint, options);
  const std::int64_t width = std::int64_t{checkpoint.spec().kv_heads} * checkpoint.spec().head_dim;
  for (int l = 0; l < checkpoint.spec().layers; ++l) {
    const auto& layer = want.layers[static_cast<std::size_t>(l)];
    REQUIRE(layer.k.size() == static_cast<std::size_t>(24 * width));
    fresh->restore({.layer = l, .first = 0, .rows = 23, .k = layer.k.data(), .v = layer.v.data()});
  }
  std::vector<float> hidden(static_cast<std::size_t>(checkpoint.spec().hidden));
  fresh->embed(std::span(input.ids).last(1), hidden);
  kvspan::tracegen::AttentionHook sees_all;
  for (int l = 0; l < checkpoint.spec().layers; ++l) fresh->layer(l, 23, hidden, sees_all);
  if (!input.hide)
    for (std::size_t i = 0; i < hidden.size(); ++i)
      CHECK(hidden[i] == Approx(want.hidden[23 * hidden.size() + i]).margin(1e-4));
  set_device_memory(std::size_t{1} << 30);
}

TEST_CASE("a device that is too small is refused with the sizes", "[cuda]") {
  const Checkpoint checkpoint = tiny_checkpoint("llama");
  set_device_memory(std::size_t{1} << 20);
  CHECK_THROWS_WITH(make_cuda_runner(checkpoint, {.tokens = 1 << 20}),
                    Contains("needed for keys and values of 1048576 rows in 1 layer") &&
                        Contains("emulated device has 1.0 MiB free of 1.0 MiB"));
  set_device_memory(std::size_t{1} << 30);
}
