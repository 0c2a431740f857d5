// SPDX-License-Identifier: Apache-2.0
// Stands for tracegen/cuda in a build without a CUDA compiler.
#include "sim/base/error.h"
#include "tracegen/forward/runner.h"

namespace kvspan::tracegen {

std::unique_ptr<Runner> make_cuda_runner(const Checkpoint& /*checkpoint*/,
                                         const RunnerOptions& /*options*/) {
  throw DeviceError(
      "this build has no CUDA (no nvcc was found, or KVSPAN_CUDA=OFF); --device cpu needs none");
}

bool has_cuda_device() { return false; }

}  // namespace kvspan::tracegen
