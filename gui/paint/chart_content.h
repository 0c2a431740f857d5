// SPDX-License-Identifier: Apache-2.0
// What a chart over rows shows.
#pragma once

#include <QString>
#include <optional>
#include <vector>

#include "gui/model/columns.h"
#include "gui/model/document.h"
#include "gui/model/stacking.h"

namespace kvspan::gui {

struct ChartLine {
  Measure measure;
  int run = -1;  // of the document: colour, name
  bool current = false;
};

struct ChartContent {
  std::vector<ChartLine> lines = {};      // the last one is on top
  std::optional<Stacking> stacking = {};  // under lines.back()
  Quantity quantity = Quantity::bytes;
  bool log = false;
  bool difference = false;  // one line, filled above and below zero
  QString title = {};       // of pictures
  QString message = {};     // instead of lines
};

}  // namespace kvspan::gui
