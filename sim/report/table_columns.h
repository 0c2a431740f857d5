// SPDX-License-Identifier: Apache-2.0
// The figures of the table on stdout, as columns of text. Internal to table.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "sim/run/result.h"

namespace kvspan {

struct TableColumn {
  std::array<std::string, 3> head;
  std::vector<std::string> cells;  // [runs], in display order
  std::string meaning;             // for the legend; empty: said by another column
  int drop = 0;                    // 0: never left out; otherwise the largest goes first
  [[nodiscard]] int width() const;
};

// Columns in which at least one run has a value; a value that is missing is a dash.
[[nodiscard]] std::vector<TableColumn> table_columns(const RunReport& report,
                                                     const std::vector<std::size_t>& order);

// What a reader has to know of a target that was not met, or that a score trace leaves open; else
// empty.
[[nodiscard]] std::string match_note(const RunResult::Match& match, double footprint);

// A value of --match, and what it is of: "peak_bytes" and "12.0 MiB".
[[nodiscard]] std::string match_word(const RunResult::Match& match);
[[nodiscard]] std::string match_value(const RunResult::Match& match, double value);

}  // namespace kvspan
