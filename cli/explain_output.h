// SPDX-License-Identifier: Apache-2.0
// What `kvspan explain` says, as tables and as JSON.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/run/explain.h"

namespace kvspan::cli {

struct ExplainSettings {
  std::string result, trace, against, out;
  std::vector<std::string> policies;  // of the result; empty: all of its runs
  std::size_t place = 0;              // of several results in one file, from 1
  std::size_t shown = 10;             // heads and rows
  ExplainOptions options;
  bool json = false, quiet = false;
};

struct ExplainAnswer {
  Explanation found;
  std::vector<std::string> specs, labels;       // of its runs
  std::vector<std::vector<std::string>> notes;  // of what the result says of them
  std::optional<std::size_t> against;           // one of them
};

void print_explanation(const ExplainSettings& s, const Trace& trace, const ExplainAnswer& answer);
[[nodiscard]] nlohmann::json explanation_json(const ExplainSettings& s,
                                              const std::vector<std::string>& command,
                                              const Trace& trace, const ExplainAnswer& answer);

}  // namespace kvspan::cli
