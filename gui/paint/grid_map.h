// SPDX-License-Identifier: Apache-2.0
// Two lists against each other as a map of coloured cells, with names, numbers and a colour bar.
#pragma once

#include <QPainter>
#include <QString>
#include <QWidget>
#include <functional>
#include <utility>
#include <vector>

namespace kvspan::gui {

struct GridContent {
  std::vector<QString> rows, columns;
  QString row_title, column_title, caption;
  std::vector<double> values;                  // [rows, columns]; NaN: none
  std::vector<QString> texts;                  // the same, as they are written
  std::function<QString(double value)> label;  // of the colour bar
};

class GridMap final : public QWidget {
 public:
  explicit GridMap(QWidget* parent);

  std::function<void()> cursor_moved;
  std::function<void()> chosen;  // by click or Enter

  void set(GridContent content);
  // Row and column under the mouse or where the keys are; {-1, -1}: none.
  [[nodiscard]] std::pair<int, int> cursor() const { return cursor_; }
  // In which every cell has room for its number, as far as there are not too many.
  [[nodiscard]] QSize picture_size() const;

 protected:
  void paintEvent(QPaintEvent* event) override;
  void mouseMoveEvent(QMouseEvent* event) override;
  void mousePressEvent(QMouseEvent* event) override;
  void leaveEvent(QEvent* event) override;
  void keyPressEvent(QKeyEvent* event) override;

 private:
  struct Edges {
    double left = 0, top = 0, right = 0, bottom = 0, line = 0;
    bool upright = false;  // names of columns stand on end
  };
  [[nodiscard]] Edges edges(double cell_width) const;
  [[nodiscard]] QRectF cells() const;  // the area of all
  [[nodiscard]] QRectF cell(int row, int column) const;
  [[nodiscard]] double widest(const std::vector<QString>& texts) const;
  [[nodiscard]] int row_count() const { return static_cast<int>(content_.rows.size()); }
  [[nodiscard]] int column_count() const { return static_cast<int>(content_.columns.size()); }
  [[nodiscard]] QColor colour(double value) const;
  void paint_names(QPainter& painter) const;
  void set_cursor(std::pair<int, int> cursor);
  [[nodiscard]] std::pair<int, int> hit(const QPointF& at) const;

  GridContent content_;
  double low_ = 0, high_ = 1;
  std::pair<int, int> cursor_{-1, -1};
};

}  // namespace kvspan::gui
