// SPDX-License-Identifier: Apache-2.0
// The table on stdout. Nothing is printed here.
#pragma once

#include <string>

#include "sim/run/result.h"

namespace kvspan {

struct TableOptions {
  int width = 100;  // of the terminal; columns are dropped, and named below, before it is exceeded
  bool utf8 = false;    // rules of box characters
  bool colour = false;  // ANSI bold and faint
};
// Title lines, one row a run, bounds apart, notes as numbered footnotes, and what the columns mean.
[[nodiscard]] std::string format_table(const RunReport& report, const TableOptions& options);

}  // namespace kvspan
