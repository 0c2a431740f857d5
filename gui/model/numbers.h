// SPDX-License-Identifier: Apache-2.0
// How numbers are written in all views.
#pragma once

#include <QString>
#include <cstdint>
#include <limits>
#include <optional>

namespace kvspan::gui {

// Where there is no value.
inline constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// "1 234 567" with thin spaces.
[[nodiscard]] QString count_text(std::int64_t count);
// "1.50 MiB"
[[nodiscard]] QString bytes_text(double bytes);
// "41.3 %"; a dash for nothing
[[nodiscard]] QString percent_text(std::optional<double> share, int decimals = 1);

// A tool tip that shows `plain` as it is: names may look like HTML.
[[nodiscard]] QString tip_text(const QString& plain);

}  // namespace kvspan::gui
