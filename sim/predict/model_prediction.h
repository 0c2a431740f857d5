// SPDX-License-Identifier: Apache-2.0
// Predictions for a whole model, whose layers may come in groups of different shape.
#pragma once

#include <cstdint>
#include <span>

#include "sim/models/model_geometry.h"
#include "sim/policy/spec.h"
#include "sim/predict/calibration.h"

namespace kvspan {

// What a run asks of the cache.
struct Workload {
  std::int64_t prompt = 0, generated = 0;
  std::int64_t chunk = 0;  // 0: the prompt is one pass
};

// The groups of layers that a policy sees alone: one, unless the model has parts.
[[nodiscard]] std::span<const ModelGeometry> parts_of(const ModelGeometry& model);

// One policy on one of these groups. calibration: null for none. Errors: ConfigError.
struct PartPrediction {
  Prediction prediction;
  bool per_query_head = false;
};
[[nodiscard]] PartPrediction predict_part(const RecipeSpec& spec, const ModelGeometry& part,
                                          const Workload& workload, const Accounting& accounting,
                                          bool every_layout, const Calibration* calibration);

// The figures of `model` from those of its parts. Bytes and entries add up; a peak does so, too,
// where the parts reach theirs in the same row, and is an upper bound elsewhere.
[[nodiscard]] Prediction united(const ModelGeometry& model, const Workload& workload,
                                std::span<const PartPrediction> parts);

// Both of these for the whole model.
[[nodiscard]] Prediction predict_model(const RecipeSpec& spec, const ModelGeometry& model,
                                       const Workload& workload, const Accounting& accounting,
                                       const Calibration* calibration);

}  // namespace kvspan
