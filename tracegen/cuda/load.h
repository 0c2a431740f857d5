// SPDX-License-Identifier: Apache-2.0
// CUDA when it is wanted: nothing here is mapped by a command that does not compute on a GPU, and
// the same program runs with and without a driver.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "tracegen/cuda/module.h"
#include "tracegen/forward/runner.h"

namespace kvspan::tracegen {

// Why no GPU of this machine can be used: it has no driver, or the driver finds none. Empty: there
// is one. Maps the driver's library and nothing else.
[[nodiscard]] std::string why_no_gpu();

// Where kvspan_cuda.so is looked for: beside the program, then in its library folder.
[[nodiscard]] std::vector<std::filesystem::path> cuda_module_places();

// The module is never unloaded. Errors: DeviceError when `file` is no module, or one of another
// build.
[[nodiscard]] const CudaModule& load_cuda_module(const std::filesystem::path& file);

// A runner of the module. Errors: DeviceError when there is no GPU or no module, and those of
// CudaModule::make_runner.
[[nodiscard]] std::unique_ptr<Runner> make_cuda_runner(const Checkpoint& checkpoint,
                                                       const RunnerOptions& options);

}  // namespace kvspan::tracegen
