// SPDX-License-Identifier: Apache-2.0
// Several reports in one: of the same policies on several traces, at several chunk sizes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/report/json.h"
#include "sim/report/table.h"
#include "sim/run/result.h"

namespace kvspan {

struct Spread {
  double mean = 0;
  std::optional<double> sd;  // of a sample, divided by n - 1; nullopt: of one value
};
// REQUIRES: at least one value.
[[nodiscard]] Spread spread_of(std::span<const double> values);

// One policy at one chunk size, over the traces that it ran on.
struct MeanRow {
  std::string label;   // its method where --match gave it another budget on every trace
  std::string amount;  // what the budget is of under chunked(), then without the number; or empty
  std::int64_t chunk = 0;
  std::size_t traces = 0;
  bool bound = false;
  Spread footprint, peak_kv, peak_bytes;
  std::optional<Spread> retained, output_error;  // of decode rows, or all; nullopt: not measured
  std::optional<Spread> retained_upper;          // where score traces leave an interval
  // --regret, of the runs that have one: regret, and the optimum's footprint.
  std::optional<Spread> regret, optimum_footprint;
};
// In the order of the first report's runs, chunk sizes in the order of the reports. The runs of
// reports that have the same methods in the same order belong together, others by their labels.
[[nodiscard]] std::vector<MeanRow> means_of(std::span<const RunReport> reports);

// {"schema_version", "kvspan", "command", "results": [to_json() of each], "means": [...]}
[[nodiscard]] nlohmann::json to_json(std::span<const RunReport> reports,
                                     Timelines timelines = Timelines::all);

[[nodiscard]] std::string format_means(std::span<const RunReport> reports,
                                       const TableOptions& options);

}  // namespace kvspan
