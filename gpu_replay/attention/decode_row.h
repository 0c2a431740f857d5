// SPDX-License-Identifier: Apache-2.0
// Attention of one row over what a pool holds of one layer, read from where it lies.
#pragma once

#include <span>
#include <vector>

#include "gpu_replay/attention/entry_format.h"
#include "gpu_replay/pool/layer_store.h"

namespace kvspan::gpu_replay {

// How the entries of one head are written, where not all of them are whole. Those of a group (see
// VectorFormat) stand side by side in the table.
struct HeadCoding {
  std::vector<std::uint8_t> format;  // [slots] in DecodeRow::formats
  std::vector<std::int32_t> place;   // [slots] in the group that keys share scales with, or 0
  std::vector<std::int16_t>
      channel;  // [k_dim] see VectorCoding; empty, in all heads: all are there
};

struct DecodeRow {
  int query_heads = 0;
  int heads = 0;  // stored ones, each read by the same number of query heads
  int k_dim = 0, v_dim = 0;
  Element element = Element::f16;
  double scale = 1;                                   // of q . k
  double softcap = 0;                                 // 0: none
  std::span<const float> q = {};                      // [query_heads, k_dim]
  std::span<const HeadTable> tables = {};             // [heads]
  std::span<const float> k_scale = {}, v_scale = {};  // [heads], see Element
  std::span<const float> sinks = {};  // [query_heads] logits that take part and have no value
  std::span<const std::int64_t> first = {};  // [heads] slots before it are not read; empty: all are
  std::span<const EntryFormat> formats = {};  // that the head codings name
  std::span<const HeadCoding> codings = {};   // [heads]; empty: all entries are whole
};

struct DecodeResult {
  std::vector<float> output;  // [query_heads, v_dim]; 0 where nothing is read
  std::vector<float> lse;     // [query_heads] log of the sum of exp(logit), sinks included
};

// Every key and value is read once for all query heads of its head, and the softmax is taken as
// they come: the reference of the kernel on a GPU. Sums in float, as there.
void attend_on_host(const DecodeRow& row, const DeviceMemory& memory, DecodeResult& out);

}  // namespace kvspan::gpu_replay
