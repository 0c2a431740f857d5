// SPDX-License-Identifier: Apache-2.0
// Internal to the reader of config.json: what the layers of a model weigh.
#pragma once

#include <string>

#include "sim/models/config_fields.h"
#include "sim/models/model_families.h"
#include "sim/models/model_geometry.h"
#include "sim/models/model_layers.h"

namespace kvspan::config {

// Bytes of the recurrent states of one request, in all layers without KV.
[[nodiscard]] Count state_bytes(const Fields& c, const Family& family, const Layers& layers);
// The dtype that the checkpoint's matrices are stored in; empty where the file leaves it open.
[[nodiscard]] std::string checkpoint_dtype(const Fields& c);
void count_weights(const Fields& c, const Family& family, const Layers& layers,
                   const ModelGeometry& model, ModelWeights& out);

}  // namespace kvspan::config
