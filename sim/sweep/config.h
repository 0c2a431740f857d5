// SPDX-License-Identifier: Apache-2.0
// What a sweep is asked for: lists, of which every combination is a cell.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/base/types.h"

namespace kvspan::sweep {

inline constexpr std::size_t kMostCells = 10'000'000;

struct Config {
  std::vector<std::string> traces;        // files, or patterns with * ? [ ]
  std::vector<RowIndex> prompts{0};       // 0: as the trace says
  std::vector<std::string> evict_at{""};  // spans or rows; "": at the prompt's end
  std::vector<RowIndex> chunks{0};        // 0: one pass
  std::vector<std::string> policies{"all"};
  std::vector<std::string> budgets;
  std::vector<std::int64_t> kv_bytes{2};
  std::vector<std::string> prefill{"whole"};
  std::vector<std::string> layouts{"ideal"};
  std::vector<std::uint64_t> seeds{0};
  std::string fidelity = "auto";
  std::string sample;   // what retained attention is estimated from; empty: nothing is left out
  bool regret = false;  // of every cell, against the best that eviction could do
};

// A configuration file; its schema: config.schema.json beside this file. `name` stands in errors.
// Errors: ConfigError "name:line: /pointer: what was found, what was expected".
[[nodiscard]] Config parse_config(std::string_view text, const std::string& name);

// Errors: ConfigError that names the option of the command line: "--budget: ...".
void check_options(const Config& config);

// Every field in it: what parse_config() reads back.
[[nodiscard]] nlohmann::json to_json(const Config& config);

// The line, from 1, where the value at a JSON pointer begins. REQUIRES: valid JSON that has it.
[[nodiscard]] std::size_t line_of(std::string_view text, std::string_view pointer);

}  // namespace kvspan::sweep
