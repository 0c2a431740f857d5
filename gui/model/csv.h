// SPDX-License-Identifier: Apache-2.0
// Numbers for other programs: CSV as in RFC 4180, but lines end with '\n'. What is written reads
// back equal.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sim/report/csv.h"

class QAbstractItemModel;

namespace kvspan::gui {

// One field, quoted where it must be; numbers in the shortest form that reads back equal, NaN
// empty.
using kvspan::csv_field;
[[nodiscard]] std::string csv_field(double value);
[[nodiscard]] std::string csv_field(std::int64_t value);
// Fields, which are written as they are, and the end of the line.
[[nodiscard]] std::string csv_line(const std::vector<std::string>& fields);

// The fields of a text, line by line. Errors: ConfigError at a quote that is not closed.
[[nodiscard]] std::vector<std::vector<std::string>> parse_csv(std::string_view text);

// A model's horizontal header and its top-level rows: Qt::EditRole, which holds exact numbers where
// Qt::DisplayRole holds rounded ones.
[[nodiscard]] std::string csv_of(const QAbstractItemModel& model);

}  // namespace kvspan::gui
