// SPDX-License-Identifier: Apache-2.0
// Everything that the window can do, by typing a few letters of its name.
#pragma once

#include <QString>
#include <functional>
#include <vector>

class QWidget;

namespace kvspan::gui {

struct Command {
  QString text;
  QString shortcut;  // may be empty
  std::function<void()> run;
};

// Lets the user choose a command and runs it. Letters may leave gaps: "exv" finds "Export view".
// A number alone is offered as a row to go to.
//   go_to_row  called with the number
void show_command_palette(QWidget* parent, const std::vector<Command>& commands,
                          const std::function<void(qint64)>& go_to_row);

// How well `letters` match `text`: larger is better, 0 not at all. Letters count more where words
// begin and where they follow one another.
[[nodiscard]] int match_score(const QString& text, const QString& letters);

}  // namespace kvspan::gui
