// SPDX-License-Identifier: Apache-2.0
// Attention of one row over what a pool holds of one layer, read from where it lies.
#pragma once

#include <span>
#include <vector>

#include "gpu_replay/attention/element.h"
#include "gpu_replay/pool/layer_store.h"

namespace kvspan::gpu_replay {

struct DecodeRow {
  int query_heads = 0;
  int heads = 0;  // stored ones, each read by the same number of query heads
  int k_dim = 0, v_dim = 0;
  Element element = Element::f16;
  double scale = 1;                                   // of q . k
  double softcap = 0;                                 // 0: none
  std::span<const float> q = {};                      // [query_heads, k_dim]
  std::span<const HeadTable> tables = {};             // [heads]; the slots that are read
  std::span<const float> k_scale = {}, v_scale = {};  // [heads], see Element
  std::span<const float> sinks = {};  // [query_heads] logits that take part and have no value
};

struct DecodeResult {
  std::vector<float> output;  // [query_heads, v_dim]; 0 where nothing is read
  std::vector<float> lse;     // [query_heads] log of the sum of exp(logit), sinks included
};

// Every key and value is read once for all query heads of its head, and the softmax is taken as
// they come: the reference of the kernel on a GPU. Sums in float, as there.
void attend_on_host(const DecodeRow& row, const DeviceMemory& memory, DecodeResult& out);

}  // namespace kvspan::gpu_replay
