// SPDX-License-Identifier: Apache-2.0
// Checks of command-line values, with messages that say what was found and what was expected.
#pragma once

#include <charconv>
#include <cstdint>
#include <string>
#include <system_error>

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

// A seed: -1 would silently become the largest one.
[[nodiscard]] inline CLI::Validator a_seed() {
  return {[](std::string& text) {
            std::uint64_t value = 0;
            const char* end = text.data() + text.size();
            const auto [stop, error] = std::from_chars(text.data(), end, value);
            if (error == std::errc{} && stop == end) return std::string();
            return fmt::format("found '{}', expected a whole number from 0 to 2^64 - 1", text);
          },
          "", "a_seed"};
}

}  // namespace kvspan::cli
