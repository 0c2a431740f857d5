// SPDX-License-Identifier: Apache-2.0
// Brute-force twin of attention_cpu() and attention_cuda(): row by row, in fp64.
#pragma once

#include "tracegen/forward/attention.h"

namespace kvspan::test {

void attention_twin(const tracegen::AttentionProblem& problem,
                    const tracegen::AttentionTensors& tensors);

}  // namespace kvspan::test
