// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/map_cells.h"

#include <cmath>

#include "gui/paint/theme.h"

namespace kvspan::gui {

void fill_cell(QPainter& painter, const QRectF& place, const QColor& colour) {
  const auto whole = [](double at) { return static_cast<int>(std::lround(at)); };
  const QRect pixels(QPoint(whole(place.left()), whole(place.top())),
                     QPoint(whole(place.right()) - 1, whole(place.bottom()) - 1));
  const bool spaced = place.width() > 8 && place.height() > 8;
  painter.fillRect(spaced ? pixels.adjusted(0, 0, -1, -1) : pixels, colour);
}

void draw_colour_bar(QPainter& painter, const QRectF& place, double line,
                     const std::function<QColor(double share)>& colour,
                     const std::function<QString(double share)>& label) {
  const int steps = static_cast<int>(place.height());
  for (int i = 0; i < steps; ++i) {
    painter.fillRect(QRectF(place.left(), place.top() + i, place.width(), 1.5),
                     colour((steps - 0.5 - i) / steps));
  }
  painter.setPen(theme().ink);
  const int labels = place.height() > 5 * line ? 5 : 2;
  for (int i = 0; i < labels; ++i) {
    const double share = static_cast<double>(i) / (labels - 1);
    const double y = place.bottom() - share * place.height();
    painter.drawText(QRectF(place.right() + 5, y - line / 2, 80, line),
                     Qt::AlignLeft | Qt::AlignVCenter, label(share));
  }
}

int label_step(double need, double size) {
  int step = 1;
  for (const int factor : {1, 2, 4, 8, 16, 32}) {
    step = factor;
    if (size * factor >= need) break;
  }
  return step;
}

}  // namespace kvspan::gui
