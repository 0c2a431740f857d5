// SPDX-License-Identifier: Apache-2.0
// Kernels of the score pass. No CUDA syntax.
#pragma once

#include <cstdint>

#include "gpu_replay/score/score_layer.h"

struct CUstream_st;

namespace kvspan::gpu_replay {

// A DeathVector whose deaths lie on the device.
struct DeviceVector {
  const std::uint32_t* deaths = nullptr;  // [heads, tokens]; null: nobody dies
  int heads = 1;
  std::int64_t begin = 0, end = 0;
};

// Some rows of one layer, as plain pointers into the device.
struct DeviceScores {
  int query_heads = 0, kv_heads = 0;
  int k_dim = 0, v_dim = 0;
  std::int64_t tokens = 0, window = 0;
  ScoreType type = ScoreType::f32;
  float scale = 1, softcap = 0;
  const void* q = nullptr;       // [rows, query_heads, k_dim] of these rows
  const void* k = nullptr;       // [tokens, kv_heads, k_dim]
  const void* v = nullptr;       // [tokens, kv_heads, v_dim]
  const float* sinks = nullptr;  // [query_heads]; null: none
  std::int64_t rows = 0;
  const std::int64_t* row = nullptr;     // [rows] ascending
  int vectors = 0;                       // all have sums; the first `outputs` have outputs
  int outputs = 0;                       // 0: none, else the first is the full cache
  const DeviceVector* vector = nullptr;  // [vectors]
  // Results, and what lies between them.
  float* max = nullptr;     // [query_heads, rows]
  double* sums = nullptr;   // [vectors, query_heads, rows]
  float* logits = nullptr;  // [query_heads, rows, stride]; null: no outputs
  std::int64_t stride = 0;  // tokens, up to a multiple of kScoreKeys
  float* output = nullptr;  // [outputs, query_heads, rows, v_dim]
  float* errors = nullptr;  // [outputs, query_heads, rows]
};

inline constexpr int kScoreRows = 64, kScoreKeys = 64;  // of a tile
inline constexpr int kScoreVectors = 64;                // that one product serves
inline constexpr int kMostScoreDim = 256;

// Launches on `stream` and returns.
// REQUIRES: dimensions are multiples of 8 and at most kMostScoreDim. Errors: DeviceError.
void launch_scores(const DeviceScores& scores, CUstream_st* stream);

}  // namespace kvspan::gpu_replay
