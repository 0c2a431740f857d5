// SPDX-License-Identifier: Apache-2.0
// What the program is, and under which licence it goes out.
#pragma once

#include <QString>
#include <string>

namespace kvspan::gui {

// "kvspan-viewer 0.4.0 (abc1234)" and, on a second line, the licence.
[[nodiscard]] std::string version_text();
// The same at length, as rich text.
[[nodiscard]] QString about_text();

}  // namespace kvspan::gui
