// SPDX-License-Identifier: Apache-2.0
// A chart of values over rows: zoomed, panned and selected in by mouse and keys, which change the
// document; a map of the whole below.
#pragma once

#include <QWidget>
#include <cstddef>

#include "gui/model/document.h"
#include "gui/paint/chart_content.h"

namespace kvspan::gui {

class Minimap;
class Plot;

class TimeChart : public QWidget {
  Q_OBJECT
 public:
  TimeChart(Document& document, QWidget* parent);
  ~TimeChart() override;

  void set_content(ChartContent content);
  // A picture, with a legend of the lines.
  void draw(QPainter& painter, const QSize& size) const;

  // See Plot::hovered_text().
  [[nodiscard]] QString hovered_text() const;

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
  Document& document_;
  Plot* plot_;
  Minimap* minimap_;
};

}  // namespace kvspan::gui
