// SPDX-License-Identifier: Apache-2.0
// What Ctrl+C takes along.
#pragma once

#include <QString>

class QWidget;

namespace kvspan::gui {

class View;

// As text, columns parted by tabs: the tool tip that is open; the table under the mouse in a chart
// of `under`, the view there; the chosen lines of the table that has the focus, under its heading;
// what `current` says of its own. Empty: nothing of these. null: there is none.
[[nodiscard]] QString copied_text(const View* under, const QWidget* focus, const View* current);

}  // namespace kvspan::gui
