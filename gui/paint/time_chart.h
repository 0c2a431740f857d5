// SPDX-License-Identifier: Apache-2.0
// A chart of values over rows: zoomed, panned and selected in by mouse and keys, which change the
// document; a map of the whole below. Axes, grid and titles are Qt Charts'; lines are painted by an
// item of ours: QLineSeries builds and strokes a path of every line again on each change, which
// takes ten times as long.
#pragma once

#include <QString>
#include <QWidget>
#include <optional>
#include <vector>

#include "gui/model/columns.h"
#include "gui/model/document.h"

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

class TimeChart : public QWidget {
  Q_OBJECT
 public:
  TimeChart(Document& document, QWidget* parent);
  ~TimeChart() override;

  void set_content(ChartContent content);
  // A picture, with a legend of the lines.
  void draw(QPainter& painter, const QSize& size) const;

  // What receives the mouse, and where rows are on it.
  [[nodiscard]] QWidget* canvas() const;
  [[nodiscard]] QRectF plot_area() const;  // on the canvas
  [[nodiscard]] double x_of(double row) const;
  // Of line `i`: the number of points that are drawn.
  [[nodiscard]] std::size_t points(std::size_t i) const;
  // True until a moment after the last change: lines are not smoothed.
  [[nodiscard]] bool moving() const;

 protected:
  void changeEvent(QEvent* event) override;

 private:
  class Plot;
  class Minimap;
  Document& document_;
  Plot* plot_;
  Minimap* minimap_;
};

}  // namespace kvspan::gui
