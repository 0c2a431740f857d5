// SPDX-License-Identifier: Apache-2.0
// Options that say which policies a command is about, the same in all of them.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace kvspan::cli {

void add_policy_options(CLI::App& sub, std::vector<std::string>& policies,
                        std::vector<std::string>& budgets);
void add_calibration(CLI::App& sub, std::string& result_file);

}  // namespace kvspan::cli
