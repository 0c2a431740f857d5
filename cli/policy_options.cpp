// SPDX-License-Identifier: Apache-2.0
#include "cli/policy_options.h"

#include <CLI/CLI.hpp>

#include "cli/validators.h"

namespace kvspan::cli {

void add_policy_options(CLI::App& sub, std::vector<std::string>& policies,
                        std::vector<std::string>& budgets) {
  sub.add_option("--policy", policies,
                 "Policy specification, 'all', or @file.json; may be repeated")
      ->transform(input_file())
      ->type_name("SPEC")
      ->allow_extra_args(false);
  sub.add_option(
         "--budget", budgets,
         "Budgets for policies that have one: tokens, 10%, 64MiB; a list makes one run each")
      ->type_name("B[,B]")
      ->delimiter(',')
      ->allow_extra_args(false);
}

void add_calibration(CLI::App& sub, std::string& result_file) {
  sub.add_option("--calibrate", result_file,
                 "Result of kvspan run: measured shares for policies that depend on content")
      ->transform(input_file())
      ->type_name("RESULT.json");
}

}  // namespace kvspan::cli
