// SPDX-License-Identifier: Apache-2.0
// A sweep's report as Markdown, CSV, JSON and SVG; and two sweeps compared.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/sweep/curves.h"

namespace kvspan::sweep {

// In a cell of a Markdown table: one line, without bars.
[[nodiscard]] std::string table_cell(const std::string& text);
// "31.2 %", "< 31.2 %", "> 31.2 %", "-".
[[nodiscard]] std::string share_text(const Critical& critical);
// The same in bytes: "1.23 MiB".
[[nodiscard]] std::string bytes_text(const Critical& critical);
// "0.8 to 4.9", "-".
[[nodiscard]] std::string interval_text(const std::optional<Interval>& interval, double scale,
                                        int digits);
// {"kind", "value"}: unknown (null), exact, below or above the value.
[[nodiscard]] nlohmann::json critical_json(const Critical& critical);
// {"low", "high"}, or null.
[[nodiscard]] nlohmann::json interval_json(const std::optional<Interval>& interval);

// A table a trace and group: points, critical footprint and peak, the front; then the ranking.
[[nodiscard]] std::string to_markdown(const SweepReport& report, const Plan& plan);
// A line a curve: tidy, units in the names. The cells themselves are in the sweep's cells.csv.
[[nodiscard]] std::string to_csv(const SweepReport& report, const Plan& plan);
[[nodiscard]] nlohmann::json critical_schema();  // the columns of that CSV
[[nodiscard]] nlohmann::json to_json(const SweepReport& report, const Plan& plan);

// What a picture says of the quality that its curves are of.
struct PictureWords {
  std::string kept = "attention";                   // "How small a KV cache keeps 90 % of ..."
  std::string axis = "retained attention, mean %";  // of y
  std::string note = "retained attention is a proxy, not accuracy";
  std::string document = "kvspan: footprint against retained attention, by method";
};
// Footprint against retained attention, a panel a trace and group (the first twelve): the methods
// with the smallest critical footprints in colour, the others grey.
[[nodiscard]] std::string to_svg(const SweepReport& report, const Plan& plan,
                                 const PictureWords& words = {});

// ---- Two sweeps ---------------------------------------------------------------------------------

// A figure of a cell that both have.
struct Change {
  std::string trace, group, policy, figure;
  double before = 0, after = 0;
  [[nodiscard]] double by() const { return after - before; }
};

struct Comparison {
  std::size_t same = 0;         // cells whose figures differ by no more than the tolerance
  std::vector<Change> changes;  // largest relative change first
  std::vector<std::string> only_before, only_after;  // cells, in words
  [[nodiscard]] bool changed() const {
    return !changes.empty() || !only_before.empty() || !only_after.empty();
  }
};
// Cells that are done in one of them, matched by trace (its checksum, or its file's name where it
// has changed), setting and specification, whatever program computed them.
//   tolerance  relative
[[nodiscard]] Comparison compare(const SweepFolder& before, const SweepFolder& after,
                                 double tolerance);
[[nodiscard]] std::string to_markdown(const Comparison& comparison, std::size_t most);

}  // namespace kvspan::sweep
