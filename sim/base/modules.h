// SPDX-License-Identifier: Apache-2.0
// Modules: shared libraries that are loaded when they are wanted (CUDA, MPI), so that no other
// command maps what they need.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace kvspan {

// Where a module such as "kvspan_cuda.so" is looked for: beside the program, then in its library
// folder.
[[nodiscard]] std::vector<std::filesystem::path> module_places(const std::string& file);

}  // namespace kvspan
