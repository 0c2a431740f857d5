// SPDX-License-Identifier: Apache-2.0
#include <dlfcn.h>

#include <fmt/format.h>

#include "gpu_replay/cuda/module.h"
#include "sim/base/error.h"
#include "sim/base/file.h"

namespace kvspan::gpu_replay {

const ReplayModule& load_replay_module(const std::filesystem::path& file) {
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  auto* const entry =
      library == nullptr
          ? nullptr
          : reinterpret_cast<const ReplayModule* (*)()>(dlsym(library, "kvspan_replay_module"));
  if (entry == nullptr)
    throw DeviceError(fmt::format("'{}' has nothing to replay with", path_text(file)));
  return *entry();
}

}  // namespace kvspan::gpu_replay
