// SPDX-License-Identifier: Apache-2.0
// What the command `plan` computes, and how it is shown: table and JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "cli/deployment_options.h"
#include "sim/fleet/fleet.h"
#include "sim/models/model_geometry.h"

namespace kvspan::cli {

struct PlanSettings : DeploymentSettings {
  std::string model, requests, prompt, generated = "256", out, calibrate;
  std::vector<std::string> policies, budgets;
  std::int64_t count = 10000, most = 0, gpus = 1, chunk = 0, block = 16, most_running = 256;
  std::optional<double> rate;
  double prefill_speed = 10000, decode_speed = 30, max_wait = 1;
  std::uint64_t seed = 0;
  bool share_prefixes = false, find_rate = false, quiet = false;
};

struct PlanRow {
  std::string label, spec;
  Basis basis = Basis::closed_form;
  FleetFigures figures;
  LittleFigures little;
  std::optional<double> rate;  // that fits, if it was searched
};

struct PlanAnswer {
  std::string source;
  std::int64_t requests = 0, skipped = 0, replicas = 1;
  double seconds = 0;  // between the first arrival and the last
  Quantiles prompt, generated;
  FixedMemory memory;
  std::vector<PlanRow> rows;
};

// Fills in what the requests are like.
void describe(const std::vector<FleetRequest>& requests, PlanAnswer& answer);
void print_plan(const PlanSettings& settings, const ModelGeometry& model, const PlanAnswer& answer);
[[nodiscard]] nlohmann::json plan_json(const PlanSettings& settings,
                                       const std::vector<std::string>& command,
                                       const PlanAnswer& answer);

}  // namespace kvspan::cli
