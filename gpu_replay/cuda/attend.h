// SPDX-License-Identifier: Apache-2.0
// Attention of one row on the device that holds the pool.
#pragma once

#include "gpu_replay/attention/decode_row.h"

namespace kvspan::gpu_replay {

// The same as attend_on_host() over a pool in the memory of make_cuda_memory(): uploads what the
// row needs, waits for the result, and returns the seconds that the kernels took.
// Errors: DeviceError, also for a shape that the kernel does not take.
double attend_on_cuda(const DecodeRow& row, DecodeResult& out);

}  // namespace kvspan::gpu_replay
