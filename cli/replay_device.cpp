// SPDX-License-Identifier: Apache-2.0
#include "cli/replay_device.h"

#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "gpu_replay/cuda/module.h"
#include "gpu_replay/pool/host_memory.h"
#include "gpu_replay/score/device_scores.h"
#include "sim/base/error.h"
#include "sim/base/file.h"
#include "sim/replay/host_scores.h"
#include "tracegen/cuda/load.h"

namespace kvspan::cli {
namespace {

using Memory = std::unique_ptr<gpu_replay::DeviceMemory>;

ReplayDevice host(bool mapped) {
  ReplayDevice device;
  device.make_memory = [mapped](std::int64_t granule, std::int64_t limit) -> Memory {
    if (mapped) return std::make_unique<gpu_replay::HostMemory>(granule, limit);
    return std::make_unique<gpu_replay::HeapMemory>(limit);
  };
  return device;
}

// remedy: the device that needs no module. Errors: DeviceError.
const gpu_replay::ReplayModule& cuda_module(const char* remedy) {
  if (const std::string why = tracegen::why_no_gpu(); !why.empty())
    throw DeviceError(fmt::format("{}; {} needs none", why, remedy));
  std::vector<std::string> looked;
  for (const std::filesystem::path& file : tracegen::cuda_module_places()) {
    looked.push_back(fmt::format("'{}'", path_text(file)));
    if (!std::filesystem::exists(file)) continue;
    (void)tracegen::load_cuda_module(file);  // of this build
    return gpu_replay::load_replay_module(file);
  }
  throw DeviceError(
      fmt::format("there is no CUDA module: looked for {}; `./build.sh cuda` builds "
                  "it; {} needs none",
                  fmt::join(looked, " and "), remedy));
}

ReplayDevice cuda(bool mapped) {
  const gpu_replay::ReplayModule& module = cuda_module("--device host");
  ReplayDevice device;
  device.cuda = true;
  device.make_memory = [mapped, &module](std::int64_t granule, std::int64_t limit) -> Memory {
    return mapped ? module.make_memory(granule, limit) : module.make_pool(limit);
  };
  device.attend = module.attend;
  return device;
}

}  // namespace

ReplayDevice replay_device(const std::string& name, bool mapped) {
  if (name == "cuda") return cuda(mapped);
  if (name == "host" || !tracegen::why_no_gpu().empty()) return host(mapped);
  try {
    return cuda(mapped);
  } catch (const DeviceError& error) {
    ReplayDevice device = host(mapped);
    device.instead = error.what();
    return device;
  }
}

MeasuringDevice measuring_device(const std::string& name) {
  if (name == "cpu") return {};
  if (name == "host") return {std::make_shared<HostScores>(), ""};
  try {
    const gpu_replay::ReplayModule& module = cuda_module("--device cpu");
    return {gpu_replay::make_device_scores(module.load_scores, module.device_name()), ""};
  } catch (const DeviceError& error) {
    if (name == "cuda") throw;
    return {nullptr, error.what()};
  }
}

}  // namespace kvspan::cli
