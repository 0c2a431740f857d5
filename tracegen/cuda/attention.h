// SPDX-License-Identifier: Apache-2.0
// Attention with capture on a GPU: what tracegen/forward/attention.h states, with q, k and v in the
// type in which the model keeps them. No CUDA syntax here; attention.cu says how it works.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tracegen/forward/attention.h"

struct CUstream_st;  // cudaStream_t is a pointer to it

namespace kvspan::tracegen {

enum class DeviceType : std::uint8_t { f32, f16, bf16 };

// Device memory; shapes and meaning are those of AttentionTensors. What is null is not emitted.
struct DeviceAttentionTensors {
  DeviceType type = DeviceType::f32;  // of q, k and v, which are aligned to 16 bytes
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  float* out = nullptr;
  int top_k = 0;  // at most kMostTopK
  float* prob = nullptr;
  std::int32_t* index = nullptr;
  float* lse = nullptr;
  float* column_mass = nullptr;  // ADDED to; costs a second sweep over q and k
  std::int64_t column_stride = 0;
  std::int64_t visible_stride = 0;  // of problem.visible between KV heads; 0: first + rows
  void* workspace = nullptr;        // attention_cuda_workspace() bytes, aligned to 16
};

inline constexpr int kMostTopK = 1024;

// Device memory that the launches below need beside the tensors: grows with rows, not with keys.
[[nodiscard]] std::size_t attention_cuda_workspace(const AttentionProblem& problem, int top_k);

// Errors: DeviceError on a head_dim or top_k out of range, and on a device that has too little
// shared memory for the head size or that this build has no code for.
void check_attention_cuda(DeviceType type, int head_dim, int top_k);

// Launches on `stream` and returns. problem.visible is device memory. With tensors.top_k = 0 and no
// lse and column_mass the same kernel runs without its capture part.
// REQUIRES: head_dim is a multiple of 8 and at most 256. The bits depend on nothing but the input.
// Errors: those of check_attention_cuda(), and DeviceError on whatever CUDA reports.
void attention_cuda(const AttentionProblem& problem, const DeviceAttentionTensors& tensors,
                    CUstream_st* stream);

}  // namespace kvspan::tracegen
