// SPDX-License-Identifier: Apache-2.0
// One line over all rows, and the zoom as a window that can be moved and resized.
#pragma once

#include <QPixmap>
#include <QWidget>

#include "gui/model/document.h"

namespace kvspan::gui {

class Plot;

class Minimap final : public QWidget {
 public:
  Minimap(Document& document, const Plot& plot, QWidget* parent);
  void content_changed();

 protected:
  void resizeEvent(QResizeEvent* event) override;

  void paintEvent(QPaintEvent* event) override;

  void mousePressEvent(QMouseEvent* event) override;
  void mouseMoveEvent(QMouseEvent* event) override;
  void mouseReleaseEvent(QMouseEvent* event) override;
  void mouseDoubleClickEvent(QMouseEvent* event) override;

 private:
  enum class Grip { none, left, right, window };

  [[nodiscard]] QRectF strip() const;
  [[nodiscard]] QRectF window_of(Rows rows) const;
  [[nodiscard]] RowIndex rows_of(double pixels) const;
  [[nodiscard]] Grip grip_at(double x) const;

  void draw_shape();

  Document& document_;
  const Plot& plot_;
  QPixmap shape_;
  Grip grip_ = Grip::none;
  double pressed_ = 0;
  Rows before_;
};

}  // namespace kvspan::gui
