// SPDX-License-Identifier: Apache-2.0
// How the program finds and takes its CUDA module; no GPU is needed.
#include <catch2/catch.hpp>

#include "sim/base/error.h"
#include "tracegen/cuda/load.h"

using Catch::Matchers::Contains;
using kvspan::DeviceError;
using kvspan::tracegen::Checkpoint;
using kvspan::tracegen::cuda_module_places;
using kvspan::tracegen::load_cuda_module;
using kvspan::tracegen::make_cuda_runner;
using kvspan::tracegen::why_no_gpu;

namespace {

constexpr const char* kLlama = KVSPAN_TESTS_DIR "/data/tracegen/checkpoints/llama";

}  // namespace

TEST_CASE("the CUDA module is looked for beside the program, then in its library folder",
          "[cuda]") {
  const auto places = cuda_module_places();
  const auto folder = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  REQUIRE(places.size() == 2);
  CHECK(places[0] == folder / "kvspan_cuda.so");
  CHECK(places[1].parent_path().filename() == "kvspan");
  CHECK(places[1].parent_path().string().starts_with(folder.parent_path().string()));
}

TEST_CASE("without a GPU or a module a CUDA runner says what is missing", "[cuda]") {
  // These tests' folder holds no module.
  CHECK_THROWS_WITH(make_cuda_runner(Checkpoint::open(kLlama), {.tokens = 4}),
                    why_no_gpu().empty()
                        ? Contains("looked for '" + cuda_module_places()[0].string() + "' and") &&
                              Contains("`./build.sh cuda` builds it")
                        : Contains(why_no_gpu()) && Contains("; --device cpu needs none"));
}

TEST_CASE("what is no module, or one of another build, is refused in one line", "[cuda]") {
  CHECK_THROWS_WITH(load_cuda_module("/none/kvspan_cuda.so"),
                    Contains("/none/kvspan_cuda.so") && Contains("`./build.sh cuda` builds it"));
  CHECK_THROWS_WITH(load_cuda_module("libstdc++.so.6"), Contains("is no CUDA module of kvspan"));
  CHECK_THROWS_WITH(
      load_cuda_module(KVSPAN_OTHER_BUILD_MODULE),
      Contains("is of another build: kvspan 0.0.0 (then; elsewhere), and this program "
               "is kvspan 0.1") &&
          Contains("`./build.sh cuda` builds it"));
}

#ifdef KVSPAN_CUDA_MODULE
TEST_CASE("the module of this build finds all that the program lends it", "[cuda]") {
  const auto& module = load_cuda_module(KVSPAN_CUDA_MODULE);
  const auto checkpoint = Checkpoint::open(kLlama);
  try {  // a GPU that is none must still be an exception that the program knows
    const auto runner = module.make_runner(checkpoint, {.tokens = 4});
    CHECK_FALSE(runner->description().empty());
  } catch (const DeviceError& error) {
    CHECK_THAT(error.what(), Contains("no usable CUDA device") && Contains("--device cpu"));
  }
}
#endif
