// SPDX-License-Identifier: Apache-2.0
// Compiled into the program and into the module, each with the build_info() of its own.
#include <fmt/format.h>

#include "sim/base/build_info.h"
#include "tracegen/cuda/module.h"

namespace kvspan::tracegen {

std::string cuda_module_build() {
  const BuildInfo info = build_info();
  return fmt::format("kvspan {} ({}; {})", info.version, info.git, info.build);
}

}  // namespace kvspan::tracegen
