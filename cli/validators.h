// SPDX-License-Identifier: Apache-2.0
// Checks of command-line values, with messages that say what was found and what was expected.
#pragma once

#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

namespace kvspan::cli {

[[nodiscard]] inline CLI::Validator at_least(int least) {
  return {[least](std::string& text) {
            double value = 0;
            if (CLI::detail::lexical_cast(text, value) && value >= least) return std::string();
            return fmt::format("found '{}', expected a number of at least {}", text, least);
          },
          "", "at_least"};
}

}  // namespace kvspan::cli
