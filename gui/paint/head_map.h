// SPDX-License-Identifier: Apache-2.0
// Layers and heads as a heat map with its means and colour bar.
#pragma once

#include <QPainter>
#include <QString>
#include <QWidget>
#include <functional>
#include <utility>

#include "gui/model/document.h"
#include "gui/model/head_table.h"

namespace kvspan::gui {

class HeadMap final : public QWidget {
 public:
  HeadMap(Document& document, const HeadTable& table, QWidget* parent);

  std::function<void(int layer, int head)> hovered;  // -1: none
  QString caption;

  void refresh();
  // In which every cell has room for its number, as far as there are not too many.
  [[nodiscard]] QSize picture_size() const;

 protected:
  void paintEvent(QPaintEvent* event) override;

  void mouseMoveEvent(QMouseEvent* event) override;
  void leaveEvent(QEvent* event) override;
  void mousePressEvent(QMouseEvent* event) override;
  void keyPressEvent(QKeyEvent* event) override;

 private:
  static constexpr double kGap = 6;  // between the cells and their means
  struct Geometry {
    QRectF cells;
    double wide = 0, high = 0, line = 0, mean_wide = 0, mean_high = 0;
    [[nodiscard]] QRectF cell(int layer, int head) const {
      return {cells.left() + head * wide, cells.top() + layer * high, wide, high};
    }
    [[nodiscard]] QRectF row_mean(int layer) const {
      return {cells.right() + kGap, cells.top() + layer * high, mean_wide, high};
    }
    [[nodiscard]] QRectF column_mean(int head) const {
      return {cells.left() + head * wide, cells.bottom() + kGap, wide, mean_high};
    }
  };

  void focus(int layer, int head);

  // What lies around the cells.
  struct Edges {
    double left = 0, top = 0, right = 0, bottom = 0, line = 0, number = 0;
  };
  [[nodiscard]] Edges edges() const;
  [[nodiscard]] Geometry geometry() const;

  [[nodiscard]] bool has_room(const Geometry& g) const;

  [[nodiscard]] QColor colour(double value) const;

  void cell(QPainter& painter, const QRectF& place, double value, bool number) const;

  void axes(QPainter& painter, const Geometry& g) const;

  void bar(QPainter& painter, const Geometry& g) const;

  // The selected layer, head or cell.
  void frame(QPainter& painter, const Geometry& g) const;

  // Layer and column; -1 beside the cells, so that means select a whole layer or head.
  [[nodiscard]] std::pair<int, int> hit(const QPointF& at) const;

  Document& document_;
  const HeadTable& table_;
  double low_ = 0, high_ = 1;
};

}  // namespace kvspan::gui
