// SPDX-License-Identifier: Apache-2.0
// Private to gpu_replay/cuda.
#pragma once

#include <cuda_runtime.h>

namespace kvspan::gpu_replay {

// Errors: DeviceError naming the call and what CUDA says about it.
void check_cuda(cudaError_t status, const char* call);

#define KVSPAN_REPLAY_CHECK(call) ::kvspan::gpu_replay::check_cuda((call), #call)

}  // namespace kvspan::gpu_replay
