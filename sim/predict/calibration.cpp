// SPDX-License-Identifier: Apache-2.0
#include "sim/predict/calibration.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "sim/base/error.h"

namespace kvspan {

std::map<std::string, Occupancies> read_occupancies(const std::string& result_file) {
  std::ifstream in(result_file);
  if (!in) throw ConfigError(fmt::format("--calibrate: cannot read '{}'", result_file));
  std::map<std::string, Occupancies> out;
  try {
    const nlohmann::json json = nlohmann::json::parse(in);
    const auto& trace = json.at("trace");
    const auto prompt = trace.at("prompt_tokens").get<std::int64_t>();
    const auto tokens = trace.at("tokens").get<std::int64_t>();
    for (const auto& run : json.at("runs")) {
      const auto heads = static_cast<double>(run.at("per_head").at("footprint").size() *
                                             run.at("per_head").at("footprint").at(0).size());
      const auto rows = run.at("timeline").at("row").get<std::vector<std::int64_t>>();
      const auto entries = run.at("timeline").at("resident_entries").get<std::vector<double>>();
      // The first decode row holds what stayed of the prompt, and its own entries.
      const auto first = std::lower_bound(rows.begin(), rows.end(), prompt);
      if (first == rows.end()) continue;  // nothing was generated
      const double after = entries.at(static_cast<std::size_t>(first - rows.begin())) / heads - 1;
      const double end = entries.back() / heads - 1;
      Occupancies o;
      o.kept = after / static_cast<double>(prompt);
      o.grows = tokens > prompt + 1 ? (end - after) / static_cast<double>(tokens - 1 - prompt) : 1;
      out[run.at("policy").get<std::string>()] = o;
    }
  } catch (const nlohmann::json::exception&) {
    throw ConfigError(
        fmt::format("--calibrate: '{}' is not a result of kvspan run (--out FILE)", result_file));
  }
  return out;
}

Policy calibrated(Policy policy, const Occupancies& measured, const std::string& result_file) {
  Rule rule;
  rule.schedule = Schedule::from_evict_point();
  rule.budget = uniform_budget();
  rule.sizing = [measured](const Pass& pass) {
    const double tokens = measured.kept * static_cast<double>(pass.evict_point) +
                          measured.grows * static_cast<double>(pass.end - pass.evict_point);
    return Sizing{std::max<TokenCount>(1, std::llround(tokens)), pass.evict_point};
  };
  policy.rules = {std::move(rule)};
  policy.full_layers = 0;  // their entries are in the mean that was measured
  policy.closed_form = true;
  policy.notes.push_back(
      fmt::format("calibrated on {}: {:.1f} % of the prompt stays, and {:.2f} entries of each "
                  "generated token",
                  result_file, 100 * measured.kept, measured.grows));
  return policy;
}

}  // namespace kvspan
