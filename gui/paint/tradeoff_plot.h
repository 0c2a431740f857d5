// SPDX-License-Identifier: Apache-2.0
// Footprint against fidelity as a chart of points, and what Qt Charts does not have: labels that
// keep clear of each other, a cursor.
#pragma once

#include <QChartView>
#include <QPointF>
#include <QRectF>
#include <QString>
#include <functional>
#include <vector>

#include "gui/model/document.h"
#include "gui/model/tradeoff.h"

class QLineSeries;
class QValueAxis;

namespace kvspan::gui {

// The mark of a family's points, around a place.
void draw_mark(QPainter& painter, const QPointF& centre, double size, int mark);

class TradeoffPlot final : public QChartView {
 public:
  TradeoffPlot(Document& document, QWidget* parent);

  std::function<void(int point)> cursor_moved;  // -1: none

  void set(const Tradeoff& tradeoff, double threshold, const QString& fidelity_name);

  [[nodiscard]] int cursor() const { return cursor_; }
  void set_cursor(int point);

 protected:
  void drawForeground(QPainter* painter, const QRectF& area) override;

  void mouseMoveEvent(QMouseEvent* event) override;
  void leaveEvent(QEvent* event) override;
  void mousePressEvent(QMouseEvent* event) override;

  void keyPressEvent(QKeyEvent* event) override;

 private:
  void choose();

  [[nodiscard]] int colour_of(const Tradeoff::Point& p) const;
  [[nodiscard]] QPointF place(double footprint, double fidelity) const;
  [[nodiscard]] QPointF place(const Tradeoff::Point& p) const;
  static QRectF box(const QPointF& centre, double size);

  [[nodiscard]] int nearest(const QPointF& at) const;

  QLineSeries* add_line(const QPen& pen);

  // Steps: what is reached with at most so much.
  void draw_front(const std::vector<std::size_t>& front);

  // The most that eviction can retain.
  void draw_frontier(const std::vector<std::pair<double, double>>& curve);

  void draw_family(const Tradeoff::Family& family);

  void draw_point(const Tradeoff::Point& p);

  // All lines of the plot, which labels keep clear of.
  [[nodiscard]] std::vector<QLineF> lines(double threshold_y, const QRectF& area) const;

  // One label a family, beside the first of its points that has room for it.
  void draw_labels(QPainter& painter, const QRectF& area, std::vector<QRectF>& taken,
                   const std::vector<QLineF>& drawn) const;

  Document& document_;
  Tradeoff tradeoff_;
  double threshold_ = 0.9;
  int cursor_ = -1;
  QValueAxis *x_, *y_;  // of the chart
};

}  // namespace kvspan::gui
