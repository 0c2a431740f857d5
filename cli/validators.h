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

// So that it is told what was expected before CLI11 gives up on the number.
[[nodiscard]] inline CLI::Validator whole_number() {
  return {[](std::string& text) {
            std::int64_t value = 0;
            if (CLI::detail::lexical_cast(text, value)) return std::string();
            return fmt::format("found '{}', expected whole tokens, such as 512", text);
          },
          "", "whole_number"};
}

// A file to write, for transform(): "-" is standard output.
[[nodiscard]] inline CLI::Validator output_file() {
  return {[](std::string& text) {
            if (text == "-") text = "/dev/stdout";
            return std::string(text.empty() ? "found '', expected the name of a file" : "");
          },
          "", "output_file"};
}

// A file to read, for transform(): "-" is standard input, and "@-" the list in it.
[[nodiscard]] inline CLI::Validator input_file() {
  return {[](std::string& text) {
            if (text == "-") text = "/dev/stdin";
            if (text == "@-") text = "@/dev/stdin";
            return std::string();
          },
          "", "input_file"};
}

}  // namespace kvspan::cli
