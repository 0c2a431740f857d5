// SPDX-License-Identifier: Apache-2.0
// What the command `predict` computes, and how it is shown: tables and JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "cli/deployment_options.h"
#include "sim/models/model_geometry.h"
#include "sim/predict/analytic.h"
#include "sim/predict/capacity.h"

namespace kvspan::cli {

struct PredictSettings : DeploymentSettings {
  std::string model;
  std::int64_t prompt = 0, generated = 0, chunk = 0;
  std::vector<std::string> policies, budgets;
  std::string prefill = "whole", layout = "ideal", out, calibrate;
  bool json = false;  // to standard output, and no table
};

// One prediction a policy, and what fits if that was asked.
struct PredictAnswer {
  std::vector<std::string> labels;
  std::vector<Prediction> predictions;
  std::string calibrated_on;  // empty: no --calibrate
  std::optional<FixedMemory> memory;
  std::optional<VllmFigures> vllm;
  std::vector<Capacity> capacities;  // empty: not asked, or no memory is left
};

void print_answer(const PredictSettings& settings, const ModelGeometry& model,
                  const PredictAnswer& answer);
[[nodiscard]] nlohmann::json answer_json(const PredictSettings& settings,
                                         const std::vector<std::string>& command,
                                         const ModelGeometry& model, const PredictAnswer& answer);

}  // namespace kvspan::cli
