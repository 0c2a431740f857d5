// SPDX-License-Identifier: Apache-2.0
// The report as CSV, quoted as in RFC 4180; lines end with '\n'.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "sim/run/result.h"

namespace kvspan {

// One line a run under a line of column names, which are dotted paths into the run's JSON, then
// into the root's (trace.*, chunk, accounting.*); arrays by index: spans.0.name. Values are those
// of the JSON, null is empty.
[[nodiscard]] std::string to_csv(const RunReport& report);
// The same of several reports, with the columns of all of them.
[[nodiscard]] std::string to_csv(std::span<const RunReport> reports);
// The same of documents of to_json(), and of what an evaluation adds to them: eval.* of a run, and
// sample.* of a document.
[[nodiscard]] std::string csv_of_documents(std::span<const nlohmann::json> documents);

// One field, quoted where it must be.
[[nodiscard]] std::string csv_field(std::string_view text);

}  // namespace kvspan
