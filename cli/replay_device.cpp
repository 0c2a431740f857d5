// SPDX-License-Identifier: Apache-2.0
#include "cli/replay_device.h"

#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "gpu_replay/cuda/module.h"
#include "gpu_replay/pool/host_memory.h"
#include "sim/base/error.h"
#include "sim/base/file.h"
#include "tracegen/cuda/load.h"

namespace kvspan::cli {
namespace {

ReplayDevice host() {
  ReplayDevice device;
  device.make_memory = [](std::int64_t granule, std::int64_t limit) {
    return std::make_unique<gpu_replay::HostMemory>(granule, limit);
  };
  return device;
}

ReplayDevice cuda() {
  constexpr const char* kRemedy = "--device host needs none";
  if (const std::string why = tracegen::why_no_gpu(); !why.empty())
    throw DeviceError(fmt::format("{}; {}", why, kRemedy));
  std::vector<std::string> looked;
  for (const std::filesystem::path& file : tracegen::cuda_module_places()) {
    looked.push_back(fmt::format("'{}'", path_text(file)));
    if (!std::filesystem::exists(file)) continue;
    (void)tracegen::load_cuda_module(file);  // of this build
    const gpu_replay::ReplayModule& module = gpu_replay::load_replay_module(file);
    ReplayDevice device;
    device.cuda = true;
    device.make_memory = module.make_memory;
    device.attend = module.attend;
    return device;
  }
  throw DeviceError(
      fmt::format("there is no CUDA module: looked for {}; `./build.sh cuda` builds "
                  "it; {}",
                  fmt::join(looked, " and "), kRemedy));
}

}  // namespace

ReplayDevice replay_device(const std::string& name) {
  if (name == "cuda") return cuda();
  if (name == "host" || !tracegen::why_no_gpu().empty()) return host();
  try {
    return cuda();
  } catch (const DeviceError& error) {
    ReplayDevice device = host();
    device.instead = error.what();
    return device;
  }
}

}  // namespace kvspan::cli
