// SPDX-License-Identifier: Apache-2.0
// What a layer does between its dense products and its attention, on a GPU. Everything is fp32 but
// what says `type`. No CUDA syntax; each call launches on `stream` and returns. Errors:
// DeviceError.
#pragma once

#include <cstdint>

#include "tracegen/cuda/attention.h"

namespace kvspan::tracegen {

// out [rows, width], in `type`, = x / sqrt(mean(x^2) + eps) * weight [width]
void norm_rows_cuda(const float* x, const float* weight, std::int64_t rows, std::int64_t width,
                    float eps, DeviceType type, void* out, CUstream_st* stream);

// From dense products to heads as the attention reads them: bias, norm of each head, rotation.
struct DeviceHeads {
  std::int64_t rows = 0;
  int heads = 0, head_dim = 0;
  const float* x = nullptr;  // [rows, heads, head_dim], rows x_stride apart
  std::int64_t x_stride = 0;
  const float* bias = nullptr;  // [heads, head_dim]; null: none
  const float* norm = nullptr;  // [head_dim]; null: none
  float eps = 0;
  const float* cosine = nullptr;  // [rows, pairs] for pairs (i, i + pairs); null: no rotation
  const float* sine = nullptr;
  std::int64_t pairs = 0;
};
// out [rows, heads, head_dim], in `type`
void finish_heads_cuda(const DeviceHeads& heads, DeviceType type, void* out, CUstream_st* stream);

// out [rows, width], in `type`, = silu(gate) * up of gate_up [rows, 2, width] + bias [2, width]
// (null: none)
void gate_rows_cuda(const float* gate_up, const float* bias, std::int64_t rows, std::int64_t width,
                    DeviceType type, void* out, CUstream_st* stream);

// x [rows, width] += bias [width]
void add_bias_cuda(float* x, const float* bias, std::int64_t rows, std::int64_t width,
                   CUstream_st* stream);

void narrow_cuda(const float* x, std::int64_t count, DeviceType type, void* out,
                 CUstream_st* stream);
void widen_cuda(DeviceType type, const void* x, std::int64_t count, float* out,
                CUstream_st* stream);

}  // namespace kvspan::tracegen
