// SPDX-License-Identifier: Apache-2.0
// Options that say on which GPUs a model runs and how it stores its cache: `predict` and `plan`.
#pragma once

#include <cstdint>
#include <string>

#include "sim/predict/capacity.h"

namespace CLI {
class App;
}

namespace kvspan::cli {

struct DeploymentSettings {
  std::string gpu_memory, gpu, reserve, kv_dtype;  // the first two empty: what fits is not asked
  std::int64_t kv_bytes = 2;
  Deployment deployment;
  [[nodiscard]] bool asks_what_fits() const { return !gpu.empty() || !gpu_memory.empty(); }
};

void add_kv_options(CLI::App& sub, DeploymentSettings& settings);
void add_gpu_options(CLI::App& sub, DeploymentSettings& settings);
// What the texts say, into the numbers. Errors: ConfigError.
void read_deployment(DeploymentSettings& settings);

}  // namespace kvspan::cli
