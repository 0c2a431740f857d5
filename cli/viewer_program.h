// SPDX-License-Identifier: Apache-2.0
// The viewer, which makes pixels: a program of its own, where it was built.
#pragma once

#include <string>
#include <vector>

namespace kvspan::cli {

// Where kvspan-viewer is: beside this program, as it is installed, or where it is built, else on
// the PATH. Errors: ConfigError that says what needs it when it is nowhere.
[[nodiscard]] std::string find_viewer(const std::string& what);

// Runs it and waits; what it prints on standard output is dropped. Errors: Error when it cannot be
// started or fails.
void run_viewer(const std::string& viewer, const std::vector<std::string>& arguments);

}  // namespace kvspan::cli
