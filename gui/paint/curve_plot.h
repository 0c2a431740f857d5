// SPDX-License-Identifier: Apache-2.0
// Curves of quality against memory: lines by method, bands or whiskers of what they spread, the
// Pareto front, and where lines reach the threshold.
#pragma once

#include <QPainter>
#include <QPointF>
#include <QRectF>
#include <QString>
#include <QWidget>
#include <cstddef>
#include <functional>
#include <optional>
#include <vector>

#include "gui/model/curve_chart.h"

namespace kvspan::gui {

class CurvePlot final : public QWidget {
 public:
  explicit CurvePlot(QWidget* parent);

  std::function<void()> cursor_moved;
  std::function<void(int item)> chosen;  // by click or Enter, of a point that stands for one thing

  void set(CurveChart chart);
  [[nodiscard]] const CurveChart& chart() const { return chart_; }
  // What the point under the cursor is and where it lies; empty: there is none.
  [[nodiscard]] QString readout() const;
  // The line that stands out; -1: none.
  void set_line(int line);
  // The point of this item has a ring; -1: none.
  void set_item(int item);

 protected:
  void paintEvent(QPaintEvent* event) override;
  void mouseMoveEvent(QMouseEvent* event) override;
  void mousePressEvent(QMouseEvent* event) override;
  void leaveEvent(QEvent* event) override;
  void keyPressEvent(QKeyEvent* event) override;

 private:
  struct Place {
    std::size_t line = 0, point = 0;
    bool operator==(const Place&) const = default;
  };
  [[nodiscard]] QPointF at(double x, double y) const;
  [[nodiscard]] QPointF at(const CurveChart::Point& p) const { return at(p.x, p.y); }
  [[nodiscard]] QColor colour_of(const CurveChart::Line& line) const;
  [[nodiscard]] bool stands_out(std::size_t line) const;
  [[nodiscard]] std::optional<Place> nearest(const QPointF& where) const;
  void set_cursor(std::optional<Place> place);
  void step(int along, int across);
  void choose();

  void set_ranges();
  void lay_out();
  void paint_axes(QPainter& painter) const;
  void paint_front(QPainter& painter) const;
  void paint_spread(QPainter& painter, std::size_t line) const;
  void paint_line(QPainter& painter, std::size_t line) const;
  void paint_threshold(QPainter& painter) const;
  void paint_labels(QPainter& painter) const;
  // Of lines with a name, the front and the threshold: what labels keep clear of.
  [[nodiscard]] std::vector<QLineF> drawn() const;

  CurveChart chart_;
  double x_low_ = 0, x_high_ = 1, y_low_ = 0, y_high_ = 1;
  QRectF area_;
  std::optional<Place> cursor_;
  int line_ = -1, item_ = -1;
};

}  // namespace kvspan::gui
