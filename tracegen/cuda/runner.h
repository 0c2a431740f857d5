// SPDX-License-Identifier: Apache-2.0
// The forward pass on a GPU, inside the module.
#pragma once

#include <memory>

#include "tracegen/forward/runner.h"

namespace kvspan::tracegen {

// Errors: those of CudaModule::make_runner.
[[nodiscard]] std::unique_ptr<Runner> make_device_runner(const Checkpoint& checkpoint,
                                                         const RunnerOptions& options);

}  // namespace kvspan::tracegen
