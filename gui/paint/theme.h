// SPDX-License-Identifier: Apache-2.0
// Colours of all views, light and dark.
#pragma once

#include <QColor>
#include <QPalette>
#include <QPen>

#include "gui/model/numbers.h"

namespace kvspan::gui {

struct Theme {
  bool dark = false;
  QColor paper, panel;      // behind charts, behind everything else
  QColor ink, faint, grid;  // text and axes, secondary text, grid lines
  QColor accent;            // the selection
  QColor good, bad;         // less and more than the baseline
  QColor unresident;        // maps: not there
};

// The theme of the program; views repaint on QEvent::PaletteChange.
[[nodiscard]] const Theme& theme();
void set_theme(bool dark);  // of the application, its palette included
[[nodiscard]] QPalette palette_of(const Theme& theme);

// Colours that the colour-blind can tell apart (Okabe and Ito; slot 0 is the ink). Beyond eight
// slots come darker ones, then lighter ones; every eight have another dash. What was measured is
// dotted.
[[nodiscard]] QColor run_colour(int slot);
[[nodiscard]] Qt::PenStyle run_dash(int slot);
[[nodiscard]] QPen run_pen(int slot, double width, bool measured);

// A colour of the sequential map (viridis-like: dark is little, on dark paper too), value in [0,
// 1].
[[nodiscard]] QColor map_colour(double value);
// A colour of a list of parts that are stacked (layers, classes), `i` of `count`.
[[nodiscard]] QColor part_colour(int i, int count);
// Black or white, whichever can be read on `background`.
[[nodiscard]] QColor text_on(const QColor& background);
// From a to b: a where share is 0.
[[nodiscard]] QColor mix(const QColor& a, const QColor& b, double share);
// Maps and texts: an entry that is there.
[[nodiscard]] QColor held_colour();

}  // namespace kvspan::gui
