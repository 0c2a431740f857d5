// SPDX-License-Identifier: Apache-2.0
#include "sim/base/modules.h"

#include <system_error>

namespace kvspan {

std::vector<std::filesystem::path> module_places(const std::string& file) {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path folder = program.parent_path();
  return {folder / file, (folder / KVSPAN_MODULE_FOLDER / file).lexically_normal()};
}

}  // namespace kvspan
