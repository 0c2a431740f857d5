// SPDX-License-Identifier: Apache-2.0
// Through the entry of the CUDA module, whose code is linked into the test.
#pragma once

#include <memory>

#include "tracegen/cuda/module.h"

namespace kvspan::tracegen::testing {

[[nodiscard]] inline std::unique_ptr<Runner> cuda_runner(const Checkpoint& checkpoint,
                                                         const RunnerOptions& options) {
  return kvspan_cuda_module()->make_runner(checkpoint, options);
}

}  // namespace kvspan::tracegen::testing
