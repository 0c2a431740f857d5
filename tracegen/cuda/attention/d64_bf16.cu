// SPDX-License-Identifier: Apache-2.0
#include "tracegen/cuda/attention/kernels.cuh"

template struct kvspan::tracegen::tiled_attention::AttentionKernels<__nv_bfloat16, 64>;
