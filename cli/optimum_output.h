// SPDX-License-Identifier: Apache-2.0
// What the command `optimum` computes, and how it is shown: table and JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/optimum/output_error.h"
#include "sim/optimum/survey.h"
#include "sim/trace/trace.h"

namespace kvspan::cli {

struct OptimumSettings {
  std::string trace, rows = "decode", value = "mass", out, lifetimes;
  std::vector<std::string> budgets{"5%", "10%", "20%", "40%"};
  std::int64_t prompt = 0, chunk = 0;
  bool shared = false, reference = false, quiet = false;
  int threads = 0;
};

struct OptimumAnswer {
  RowIndex prompt = 0, passes = 0;
  std::vector<std::string> budget_texts;  // as given, by size
  optimum::Survey survey;
  optimum::ErrorSurvey errors;  // in its place with --value error
};

void print_optimum(const OptimumSettings& settings, const Trace& trace,
                   const OptimumAnswer& answer);
void print_errors(const OptimumSettings& settings, const Trace& trace, const OptimumAnswer& answer);
[[nodiscard]] nlohmann::json optimum_json(const OptimumSettings& settings,
                                          const std::vector<std::string>& command,
                                          const Trace& trace, const OptimumAnswer& answer);

}  // namespace kvspan::cli
