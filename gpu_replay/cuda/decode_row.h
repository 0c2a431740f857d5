// SPDX-License-Identifier: Apache-2.0
// Kernels of attention of one row over a pool in the memory of a GPU. No CUDA syntax.
#pragma once

#include <cstdint>

#include "gpu_replay/attention/entry_format.h"

struct CUstream_st;

namespace kvspan::gpu_replay {

// What one row needs on the device, as plain pointers into it.
struct DeviceRow {
  int query_heads = 0, heads = 0, k_dim = 0, v_dim = 0;
  Element element = Element::f16;
  float scale = 1, softcap = 0;
  std::int64_t block_size = 1, slot_bytes = 0;
  int parts = 1;                              // a head's entries are cut into so many
  const float* q = nullptr;                   // [query_heads, k_dim]
  const std::int64_t* blocks = nullptr;       // addresses, of all heads
  const std::int32_t* slots = nullptr;        // of all heads
  const std::int64_t* block_begin = nullptr;  // [heads + 1] in blocks
  const std::int64_t* slot_begin = nullptr;   // [heads + 1] in slots
  const float* k_scale = nullptr;             // [heads]
  const float* v_scale = nullptr;             // [heads]
  const float* sinks = nullptr;               // [query_heads]; null: none
  const std::int64_t* read_begin = nullptr;   // [heads] in slots: those before are not read
  // Where not all entries are whole (see HeadCoding); else null.
  const EntryFormat* formats = nullptr;
  const std::uint8_t* format = nullptr;   // [slots] of all heads, in formats
  const std::int32_t* place = nullptr;    // [slots] of all heads
  const std::int16_t* channel = nullptr;  // [heads, k_dim]; null: all channels are there
  float* partial = nullptr;               // [query_heads, parts, v_dim + 2]: values, maximum, sum
  float* output = nullptr;                // [query_heads, v_dim]
  float* lse = nullptr;                   // [query_heads]
};

inline constexpr int kMostGroup = 16;  // query heads of a head
inline constexpr int kMostHeadDim = 256;

// Launches on `stream` and returns.
// REQUIRES: a group of at most kMostGroup, dimensions of at most kMostHeadDim. Errors: DeviceError.
void launch_decode_row(const DeviceRow& row, CUstream_st* stream);

}  // namespace kvspan::gpu_replay
