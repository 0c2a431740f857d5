// SPDX-License-Identifier: Apache-2.0
// Internal to the reader of config.json: the layers of Gemma 3n and Gemma 4, which reuse KV and
// have an embedding of their own.
#pragma once

#include "sim/models/config_fields.h"
#include "sim/models/model_geometry.h"
#include "sim/models/model_layers.h"
#include "sim/models/weight_groups.h"

namespace kvspan::config {

void count_gemma3n(const Fields& c, const Layers& layers, const ModelGeometry& model, Weights& w);
void count_gemma4(const Fields& c, const Layers& layers, const ModelGeometry& model, Weights& w);

// The KV of one layer.
struct KvShape {
  int heads = 0, width = 0;
  bool operator==(const KvShape&) const = default;
};
// Of Gemma 4, whose full layers have other heads than the sliding ones.
[[nodiscard]] KvShape gemma4_shape(const Fields& c, const ModelGeometry& model, int layer,
                                   bool slides);

}  // namespace kvspan::config
