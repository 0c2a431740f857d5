// SPDX-License-Identifier: Apache-2.0
// The dense product of rows that must not notice each other: every element is summed in one order,
// whichever rows share the call, so that a batch of sequences gives what each gives alone. (The
// library's product, kernels::gemm, promises no such thing.)
#pragma once

#include <cstdint>
#include <vector>

#include "tracegen/model/checkpoint.h"

namespace kvspan::tracegen {

// y [rows, ldy] = x [rows, columns] W^T + bias; `bias` may be empty. Work is divided among the
// calling TBB arena's threads.
void stable_dense(const float* x, std::int64_t rows, const WeightMatrix& w,
                  const std::vector<float>& bias, float* y, std::int64_t ldy);

}  // namespace kvspan::tracegen
