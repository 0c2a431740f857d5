// SPDX-License-Identifier: Apache-2.0
// What charts are drawn with: lines, however many, text that stays readable, boxes of text.
#pragma once

#include <QFont>
#include <QPainter>
#include <QPen>
#include <QPolygonF>
#include <QString>
#include <vector>

namespace kvspan::gui {

[[nodiscard]] QFont small_font(const QFont& base);

// Text that stays readable on lines.
void draw_haloed(QPainter& painter, const QPointF& at, const QString& text, const QColor& colour,
                 double halo);

// Text in a framed box beside a point, inside `area`.
struct BoxLine {
  QString text, value;
  QPen mark = Qt::NoPen;
};
void draw_box(QPainter& painter, const QPointF& at, const QRectF& area,
              const std::vector<BoxLine>& lines);

// A polyline, as the painter is fastest at it: a path of many spans up and down, smooth and wide,
// takes a hundred times as long as one of a pixel's width; single segments, ten times.
//   line  may be moved
enum class Care { fast, smooth, paper };
void paint_line(QPainter& painter, QPolygonF& line, QPen pen, Care care);

}  // namespace kvspan::gui
