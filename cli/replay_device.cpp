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

using Memory = std::unique_ptr<gpu_replay::DeviceMemory>;

ReplayDevice host(bool mapped) {
  ReplayDevice device;
  device.make_memory = [mapped](std::int64_t granule, std::int64_t limit) -> Memory {
    if (mapped) return std::make_unique<gpu_replay::HostMemory>(granule, limit);
    return std::make_unique<gpu_replay::HeapMemory>(limit);
  };
  return device;
}

ReplayDevice cuda(bool mapped) {
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
    device.make_memory = [mapped, &module](std::int64_t granule, std::int64_t limit) -> Memory {
      return mapped ? module.make_memory(granule, limit) : module.make_pool(limit);
    };
    device.attend = module.attend;
    return device;
  }
  throw DeviceError(
      fmt::format("there is no CUDA module: looked for {}; `./build.sh cuda` builds "
                  "it; {}",
                  fmt::join(looked, " and "), kRemedy));
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

}  // namespace kvspan::cli
