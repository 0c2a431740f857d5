// SPDX-License-Identifier: Apache-2.0
#include "cli/deployment_options.h"

#include <CLI/CLI.hpp>

#include "cli/validators.h"
#include "sim/predict/gpu_memory.h"

namespace kvspan::cli {

void add_kv_options(CLI::App& sub, DeploymentSettings& settings) {
  CLI::Option* kv_bytes =
      sub.add_option("--kv-bytes", settings.kv_bytes, "Bytes of one stored element")
          ->check(CLI::Range(1, 16))
          ->type_name("B");
  sub.add_option("--kv-dtype", settings.kv_dtype,
                 "The same by the name of a format (fp16, fp8, ...)")
      ->excludes(kv_bytes)
      ->type_name("NAME");
}

void add_gpu_options(CLI::App& sub, DeploymentSettings& settings) {
  CLI::Option* memory = sub.add_option("--gpu-memory", settings.gpu_memory,
                                       "What fits into a GPU of this much memory?")
                            ->type_name("SIZE");
  sub.add_option("--gpu", settings.gpu,
                 "The same by its name (H100, A100-80GB, ...): what it really has")
      ->excludes(memory)
      ->type_name("NAME");
  sub.add_option("--gpu-utilization", settings.deployment.utilization,
                 "Share of it that may be used")
      ->capture_default_str()
      ->type_name("SHARE");
  sub.add_option("--reserve", settings.reserve, "Of that share, what the runtime itself takes")
      ->type_name("SIZE");
  sub.add_option("--tp", settings.deployment.tp, "GPUs that share every layer (tensor parallelism)")
      ->check(at_least(1))
      ->type_name("K");
  sub.add_option("--weight-dtype", settings.deployment.weight_dtype,
                 "Format of the weights; default: the checkpoint's")
      ->type_name("NAME");
}

void read_deployment(DeploymentSettings& s) {
  if (!s.kv_dtype.empty()) s.kv_bytes = kv_dtype_bytes(s.kv_dtype);
  if (!s.gpu.empty()) s.deployment.gpu_memory = gpu_memory(s.gpu);
  if (!s.gpu_memory.empty())
    s.deployment.gpu_memory = parse_gpu_memory(s.gpu_memory, "--gpu-memory");
  if (!s.reserve.empty()) s.deployment.reserve = parse_gpu_memory(s.reserve, "--reserve");
}

}  // namespace kvspan::cli
