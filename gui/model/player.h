// SPDX-License-Identifier: Apache-2.0
// Plays the rows: the selected row walks through the zoom, and all views follow.
#pragma once

#include <QObject>
#include <QTimer>
#include <functional>

#include "gui/model/document.h"

namespace kvspan::gui {

class Player : public QObject {
  Q_OBJECT
 public:
  Player(Document& document, QObject* parent);

  std::function<bool()> ready;  // a row stays until views have shown it; empty: none waits

  [[nodiscard]] bool playing() const { return timer_.isActive(); }
  // From the selected row, or from the first of the zoom where it is the last or outside. All rows
  // of a zoom take about twelve seconds, a row a quarter of one at most.
  void play();
  void stop();
  void toggle() { playing() ? stop() : play(); }
  void step();  // what happens every now and then

 signals:
  void changed(bool playing);

 private:
  Document& document_;
  QTimer timer_;
  RowIndex by_ = 1;
};

}  // namespace kvspan::gui
