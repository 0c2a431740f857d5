// SPDX-License-Identifier: Apache-2.0
// What this program is, for reports and --version.
#pragma once

#include <string_view>

namespace kvspan {

struct BuildInfo {
  std::string_view version;  // "0.1.0"
  std::string_view git;      // git describe --always --dirty, "unknown" outside a repository
  std::string_view build;    // build type and compiler, "Release, GNU 12.2.0"
};

[[nodiscard]] BuildInfo build_info();

}  // namespace kvspan
