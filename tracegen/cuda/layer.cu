// SPDX-License-Identifier: Apache-2.0
// Element-wise parts of a layer: each reads its input once or twice and is bound by memory. A warp
// takes a row (or a head of it), so that sums need no shared memory and one fixed order.
#include <cmath>

#include "tracegen/cuda/kernel.h"
#include "tracegen/cuda/layer.h"

namespace kvspan::tracegen {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;

__device__ float warp_sum(float x) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kWholeWarp, x, lanes);
  return x;
}

__device__ std::int64_t warp_index() {
  return std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
}
__device__ std::int64_t thread_index() { return std::int64_t{blockIdx.x} * kThreads + threadIdx.x; }

// grid [rows / kWarps]; x, out [rows, width]
template <typename T>
__global__ void norm_rows(const float* __restrict__ x, const float* __restrict__ weight,
                          std::int64_t rows, std::int64_t width, float eps, T* __restrict__ out) {
  const std::int64_t row = warp_index();
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const float* const from = x + row * width;
  float squares = 0;
  for (std::int64_t i = lane; i < width; i += kWarp) squares = fmaf(from[i], from[i], squares);
  const float factor = 1 / sqrtf(warp_sum(squares) / static_cast<float>(width) + eps);
  for (std::int64_t i = lane; i < width; i += kWarp)
    out[row * width + i] = narrow<T>(from[i] * factor * weight[i]);
}

// grid [rows * heads / kWarps]; shapes in DeviceHeads
template <typename T>
__global__ void finish_heads(DeviceHeads h, T* __restrict__ out) {
  const std::int64_t at = warp_index();
  if (at >= h.rows * h.heads) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = at / h.heads;
  const std::int64_t head = at % h.heads;
  const float* const from = h.x + row * h.x_stride + head * h.head_dim;
  const float* const bias = h.bias == nullptr ? nullptr : h.bias + head * h.head_dim;
  const auto plain = [&](std::int64_t i) { return from[i] + (bias == nullptr ? 0 : bias[i]); };
  float factor = 1;
  if (h.norm != nullptr) {
    float squares = 0;
    for (int i = lane; i < h.head_dim; i += kWarp) squares = fmaf(plain(i), plain(i), squares);
    factor = 1 / sqrtf(warp_sum(squares) / static_cast<float>(h.head_dim) + h.eps);
  }
  const auto normed = [&](std::int64_t i) {
    return h.norm == nullptr ? plain(i) : plain(i) * factor * h.norm[i];
  };
  const std::int64_t pairs = h.cosine == nullptr ? 0 : h.pairs;
  for (int i = lane; i < h.head_dim; i += kWarp) {
    float x = normed(i);
    if (i < 2 * pairs) {
      const std::int64_t pair = row * h.pairs + i % pairs;
      const float other = i < pairs ? -normed(i + pairs) : normed(i - pairs);
      x = x * h.cosine[pair] + other * h.sine[pair];
    }
    out[at * h.head_dim + i] = narrow<T>(x);
  }
}

// grid [rows * width / kThreads]
template <typename T>
__global__ void gate_rows(const float* __restrict__ gate_up, const float* __restrict__ bias,
                          std::int64_t rows, std::int64_t width, T* __restrict__ out) {
  const std::int64_t at = thread_index();
  if (at >= rows * width) return;
  const std::int64_t column = at % width;
  const float* const from = gate_up + at / width * 2 * width + column;
  const float gate = from[0] + (bias == nullptr ? 0 : bias[column]);
  const float up = from[width] + (bias == nullptr ? 0 : bias[width + column]);
  out[at] = narrow<T>(gate / (1 + expf(-gate)) * up);
}

__global__ void add_bias(float* __restrict__ x, const float* __restrict__ bias, std::int64_t rows,
                         std::int64_t width) {
  const std::int64_t at = thread_index();
  if (at < rows * width) x[at] += bias[at % width];
}

template <typename T>
__global__ void narrow_all(const float* __restrict__ x, std::int64_t count, T* __restrict__ out) {
  const std::int64_t at = thread_index();
  if (at < count) out[at] = narrow<T>(x[at]);
}

template <typename T>
__global__ void widen_all(const T* __restrict__ x, std::int64_t count, float* __restrict__ out) {
  const std::int64_t at = thread_index();
  if (at < count) out[at] = widen(x[at]);
}

// ---- Launchers ----------------------------------------------------------------------------------

dim3 blocks_of(std::int64_t items, std::int64_t per_block) {
  return {static_cast<unsigned>((items + per_block - 1) / per_block)};
}

// Calls use(T{}) with the type that `type` names.
template <typename Use>
void with_type(DeviceType type, const Use& use) {
  switch (type) {
    case DeviceType::f32:
      return use(float{});
    case DeviceType::f16:
      return use(__half{});
    case DeviceType::bf16:
      return use(__nv_bfloat16{});
  }
}

}  // namespace

void norm_rows_cuda(const float* x, const float* weight, std::int64_t rows, std::int64_t width,
                    float eps, DeviceType type, void* out, cudaStream_t stream) {
  with_type(type, [&](auto t) {
    launch(norm_rows<decltype(t)>, blocks_of(rows, kWarps), kThreads, 0, stream, x, weight, rows,
           width, eps, static_cast<decltype(t)*>(out));
  });
}

void finish_heads_cuda(const DeviceHeads& heads, DeviceType type, void* out, cudaStream_t stream) {
  with_type(type, [&](auto t) {
    launch(finish_heads<decltype(t)>, blocks_of(heads.rows * heads.heads, kWarps), kThreads, 0,
           stream, heads, static_cast<decltype(t)*>(out));
  });
}

void gate_rows_cuda(const float* gate_up, const float* bias, std::int64_t rows, std::int64_t width,
                    DeviceType type, void* out, cudaStream_t stream) {
  with_type(type, [&](auto t) {
    launch(gate_rows<decltype(t)>, blocks_of(rows * width, kThreads), kThreads, 0, stream, gate_up,
           bias, rows, width, static_cast<decltype(t)*>(out));
  });
}

void add_bias_cuda(float* x, const float* bias, std::int64_t rows, std::int64_t width,
                   cudaStream_t stream) {
  launch(add_bias, blocks_of(rows * width, kThreads), kThreads, 0, stream, x, bias, rows, width);
}

void narrow_cuda(const float* x, std::int64_t count, DeviceType type, void* out,
                 cudaStream_t stream) {
  with_type(type, [&](auto t) {
    launch(narrow_all<decltype(t)>, blocks_of(count, kThreads), kThreads, 0, stream, x, count,
           static_cast<decltype(t)*>(out));
  });
}

void widen_cuda(DeviceType type, const void* x, std::int64_t count, float* out,
                cudaStream_t stream) {
  with_type(type, [&](auto t) {
    launch(widen_all<decltype(t)>, blocks_of(count, kThreads), kThreads, 0, stream,
           static_cast<const decltype(t)*>(x), count, out);
  });
}

}  // namespace kvspan::tracegen
