// SPDX-License-Identifier: Apache-2.0
// What only the emulation can do to the CUDA path: change the order of threads, or the device.
#include <bit>
#include <cmath>
#include <cstdint>
#include <cuda_runtime.h>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"
#include "tests/support/attention_case.h"
#include "tests/support/cuda_runner.h"
#include "tests/support/runner_case.h"
#include "tracegen/forward/runner.h"

using Catch::Matchers::Contains;
using Catch::Matchers::Equals;
using kvspan::cuda_on_cpu::pinned_memory;
using kvspan::cuda_on_cpu::set_device_memory;
using kvspan::cuda_on_cpu::set_schedule;
using kvspan::cuda_on_cpu::set_shared_memory;
using kvspan::tracegen::Checkpoint;
using kvspan::tracegen::DeviceType;
using kvspan::tracegen::make_cpu_runner;
using kvspan::tracegen::RunnerOptions;
using namespace kvspan::tracegen::testing;
namespace fs = std::filesystem;

namespace {

// The checkpoint "qwen2" in `folder`, all elements of one BF16 tensor replaced.
Checkpoint changed_qwen2(const fs::path& folder, const std::string& tensor, float value) {
  fs::copy(KVSPAN_TESTS_DIR "/data/tracegen/checkpoints/qwen2", folder,
           fs::copy_options::recursive);
  std::fstream file(folder / "model.safetensors", std::ios::binary | std::ios::in | std::ios::out);
  std::uint64_t header_bytes = 0;
  file.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
  std::string header(header_bytes, ' ');
  file.read(header.data(), static_cast<std::streamsize>(header_bytes));
  const auto place = nlohmann::json::parse(header).at(tensor).at("data_offsets");
  const auto bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
  file.seekp(static_cast<std::streamoff>(8 + header_bytes + place[0].get<std::uint64_t>()));
  for (auto i = place[0].get<std::uint64_t>(); i < place[1].get<std::uint64_t>(); i += 2)
    file.write(reinterpret_cast<const char*>(&bits), sizeof bits);
  file.close();
  return Checkpoint::open(folder);
}

}  // namespace

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
  const auto cuda = cuda_runner(checkpoint, options);
  CHECK_THAT(cuda->description(), Contains(all_layers ? "all layers" : "one layer"));
  const auto want = run_case(*cpu, checkpoint.spec(), input);
  CHECK_THAT(worst_difference(want, run_case(*cuda, checkpoint.spec(), input), 2e-5), Equals(""));

  // Another process: keys and values are restored, and the last row runs again.
  const auto fresh = cuda_runner(checkpoint, options);
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
  CHECK_THROWS_WITH(cuda_runner(checkpoint, {.tokens = 1 << 20}),
                    Contains("needed for keys and values of 1048576 rows in 1 layer") &&
                        Contains("emulated device has 1.0 MiB free of 1.0 MiB"));
  set_device_memory(std::size_t{1} << 30);
}

TEST_CASE("what a kernel of this head size cannot do is refused before any layer", "[cuda]") {
  const Checkpoint checkpoint = tiny_checkpoint("llama");
  CHECK_THROWS_WITH(cuda_runner(checkpoint, {.tokens = 24, .top_k = 1025}),
                    Contains("up to 1024 probabilities a row, not 1025"));
  set_shared_memory(48 << 10);
  CHECK_THROWS_WITH(cuda_runner(checkpoint, {.tokens = 24}),
                    Contains("bytes of shared memory a block; emulated device has 49152"));
  set_shared_memory(163 << 10);
}

TEST_CASE("a runner on a GPU says how much host memory it pins", "[cuda]") {
  const Checkpoint checkpoint = tiny_checkpoint("llama");
  const RunnerCase input = tiny_case();
  const std::size_t before = pinned_memory();
  const auto cuda = cuda_runner(checkpoint, {.tokens = 24, .top_k = input.emit.top_k, .wave = 5});
  const auto stated = static_cast<std::size_t>(cuda->memory_bytes());
  (void)run_case(*cuda, checkpoint.spec(), input);
  CHECK(pinned_memory() - before == stated);
}

TEST_CASE("q, k and v beyond F16 are refused, not stored as its largest value", "[cuda]") {
  const char* const name = GENERATE("q", "k", "v");
  const fs::path folder =
      fs::temp_directory_path() / fmt::format("kvspan_cuda_{}", std::random_device{}());
  fs::create_directories(folder);
  const Checkpoint checkpoint =
      changed_qwen2(folder, std::string("model.layers.1.self_attn.") + name + "_proj.bias", 1e5F);
  const RunnerCase input = tiny_case();
  const auto run = [&](bool half) {
    const auto cuda = cuda_runner(checkpoint, {.tokens = 24, .half_precision = half});
    return run_case(*cuda, checkpoint.spec(), input);
  };
  CHECK_NOTHROW(run(false));
  fs::remove_all(folder);
  CHECK_THROWS_WITH(run(true), Contains(std::string("layer 1: ") + name + " in F16: not finite"));
}

TEST_CASE("scores that overflow harm nothing where no top K is asked for", "[cuda]") {
  AttentionCase input = random_case(
      DeviceType::f32, {.query_heads = 2, .kv_heads = 1, .head_dim = 8, .first = 3, .rows = 4}, 0,
      1, 0, 1);
  for (std::vector<float>* const x : {&input.q, &input.k}) x->assign(x->size(), 1e30F);
  for (const float lse : attend_on_device(input).lse) CHECK_FALSE(std::isfinite(lse));
}
