// SPDX-License-Identifier: Apache-2.0
// What a run tells its reader: result JSON (schema_version 1), CSV, and the table on stdout.
// Nothing is printed or written here.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "sim/run/result.h"

namespace kvspan {

// The result JSON. Beyond the documented keys: runs[].label, runs[].match and
// runs[].timeline.overhead_bytes. Texts are made valid UTF-8, so that dump() cannot fail.
//
// timeline holds every row in which entries, bytes or active entries differ from the row before, or
// in which a new value of retained mass was measured; entries and bytes hold until the next listed
// row. More than 4096 rows are thinned: the list is cut into equal pieces, and of each the rows of
// its largest entries, bytes and active entries and of its smallest mass stay; so do the first row,
// the last, and the peaks of the whole run. retained_mass is null where it was not measured.
//
// per_layer[].layer is the model's layer; the axes of per_head are the trace's layers and the
// stored heads (retained_mass: query heads).
[[nodiscard]] nlohmann::json to_json(const RunReport& report);

// One line a run under a line of column names, which are dotted paths into the run's JSON, then
// into the root's (trace.*, chunk, accounting.*); arrays by index: spans.0.name. Values are those
// of the JSON, null is empty. Quoted as in RFC 4180, lines end with '\n'.
[[nodiscard]] std::string to_csv(const RunReport& report);

struct TableOptions {
  int width = 100;  // of the terminal; columns are dropped, and named below, before it is exceeded
  bool utf8 = false;    // rules of box characters
  bool colour = false;  // ANSI bold and faint
};
// Title lines, one row a run, bounds apart, notes as numbered footnotes, and what the columns mean.
[[nodiscard]] std::string format_table(const RunReport& report, const TableOptions& options);

// The notes of a run with those that follow from the report itself: the layers that its bytes are
// of, that it is a bound, that its percentiles are from a histogram.
[[nodiscard]] std::vector<std::string> notes_of(const RunReport& report, const RunResult& run);

// "bytes of 3 of 30 layers", or empty when the trace stores all of them.
[[nodiscard]] std::string layer_subset(const TraceMeta& trace);

}  // namespace kvspan
