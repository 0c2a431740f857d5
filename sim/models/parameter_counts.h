// SPDX-License-Identifier: Apache-2.0
// Internal to the reader of config.json: what the layers of a model weigh.
#pragma once

#include "sim/models/config_fields.h"
#include "sim/models/model_families.h"
#include "sim/models/model_geometry.h"
#include "sim/models/model_layers.h"
#include "sim/models/quantization.h"

namespace kvspan::config {

// Sets groups and widths. Errors: ConfigError naming the field.
void count_weights(const Fields& c, const Family& family, const Layers& layers,
                   const Quantization& quantization, const ModelGeometry& model, ModelWeights& out);

}  // namespace kvspan::config
