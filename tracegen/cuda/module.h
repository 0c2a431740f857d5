// SPDX-License-Identifier: Apache-2.0
// What kvspan_cuda.so, the module of all that needs CUDA, offers to the program that loads it. It
// is C++ on both sides of one build: the program lends the module what lent.list names, and a
// module of another build is refused before anything but `build` is read.
#pragma once

#include <memory>
#include <string>

#include "tracegen/forward/runner.h"

namespace kvspan::tracegen {

struct CudaModule {
  const char* build = nullptr;  // cuda_module_build() of the module; stays the first member
  // Errors: DeviceError when there is no device, it lacks memory, or its attention cannot take the
  // model's head_dim or options.top_k.
  std::unique_ptr<Runner> (*make_runner)(const Checkpoint& checkpoint,
                                         const RunnerOptions& options) = nullptr;
};

// "kvspan 0.1.0 (v0.1.0-3-g1234567; Release, GNU 12.2.0)" of the code that calls it.
[[nodiscard]] std::string cuda_module_build();

}  // namespace kvspan::tracegen

// The module's one entry.
extern "C" const kvspan::tracegen::CudaModule* kvspan_cuda_module();
