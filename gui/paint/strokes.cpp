// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/strokes.h"

#include <QFontMetricsF>
#include <QPainterPath>
#include <algorithm>
#include <cmath>
#include <numeric>

#include "gui/paint/theme.h"

namespace kvspan::gui {

QFont small_font(const QFont& base) {
  QFont font = base;
  font.setPointSizeF(std::max(7.0, base.pointSizeF() * 0.88));
  return font;
}

void draw_haloed(QPainter& painter, const QPointF& at, const QString& text, const QColor& colour,
                 double halo) {
  QPainterPath letters;
  letters.addText(at, painter.font(), text);
  painter.strokePath(letters,
                     QPen(theme().paper, 2 * halo, Qt::SolidLine, Qt::RoundCap, Qt::RoundJoin));
  painter.setPen(colour);
  painter.drawText(at, text);
}

void draw_box(QPainter& painter, const QPointF& at, const QRectF& area,
              const std::vector<BoxLine>& lines) {
  constexpr double kMark = 16;
  constexpr double kGap = 14;
  constexpr double kPad = 6;
  const QFontMetricsF metrics(painter.font());
  double names = 0;
  double values = 0;
  bool marks = false;
  for (const BoxLine& line : lines) {
    names = std::max(names, metrics.horizontalAdvance(line.text));
    values = std::max(values, metrics.horizontalAdvance(line.value));
    marks = marks || line.mark.style() != Qt::NoPen;
  }
  const double left = marks ? kMark : 0;
  const double step = metrics.lineSpacing();
  const QSizeF size(left + names + (values > 0 ? kGap + values : 0) + 2 * kPad,
                    step * static_cast<double>(lines.size()) + 2 * kPad);
  QRectF box(at + QPointF(12, 12), size);
  if (box.right() > area.right()) box.moveRight(at.x() - 12);
  box.moveLeft(std::max(box.left(), area.left()));
  box.moveTop(
      std::clamp(box.top(), area.top(), std::max(area.top(), area.bottom() - size.height())));
  QColor paper = theme().panel;
  paper.setAlphaF(0.94F);
  painter.setPen(QPen(theme().grid, 1));
  painter.setBrush(paper);
  painter.drawRoundedRect(box, 3, 3);
  double y = box.top() + kPad;
  for (const BoxLine& line : lines) {
    const double x = box.left() + kPad;
    if (line.mark.style() != Qt::NoPen) {
      painter.setPen(line.mark);
      painter.drawLine(QPointF(x, y + step / 2), QPointF(x + kMark - 5, y + step / 2));
    }
    painter.setPen(theme().ink);
    painter.drawText(QPointF(x + left, y + metrics.ascent()), line.text);
    const double right = box.right() - kPad - metrics.horizontalAdvance(line.value);
    painter.drawText(QPointF(right, y + metrics.ascent()), line.value);
    y += step;
  }
}

namespace {

// Adds what a dashed pen draws of a segment. Dashes go by x, so that they stay in step over
// segments that are shorter than they are; steep ones are drawn whole.
//   pattern  pixels that are drawn, left out, drawn, ...; empty: solid
void add_dashes(QList<QPointF>& ends, const QPointF& a, const QPointF& b,
                const QList<qreal>& pattern) {
  if (pattern.empty() || std::abs(b.y() - a.y()) > 2 * (b.x() - a.x()) + 2) {
    ends << a << b;
    return;
  }
  const double period = std::accumulate(pattern.begin(), pattern.end(), 0.0);
  const auto at = [&](double x) {
    return b.x() > a.x() ? a + (b - a) * ((x - a.x()) / (b.x() - a.x())) : a;
  };
  for (double from = std::floor(a.x() / period) * period; from <= b.x(); from += period) {
    double begin = from;
    for (qsizetype i = 0; i + 1 < pattern.size(); i += 2) {
      const double first = std::max(begin, a.x());
      const double last = std::min(begin + pattern[i], b.x());
      if (first <= last) ends << at(first) << at(last);
      begin += pattern[i] + pattern[i + 1];
    }
  }
}

}  // namespace

void paint_line(QPainter& painter, QPolygonF& line, QPen pen, Care care) {
  painter.setBrush(Qt::NoBrush);
  switch (care) {
    case Care::paper:
      painter.setPen(pen);
      painter.drawPolyline(line);
      return;
    case Care::smooth: {
      QList<qreal> pattern;
      if (pen.style() != Qt::SolidLine) pattern = pen.dashPattern();
      for (qreal& length : pattern) length *= pen.widthF();
      QList<QPointF> ends;
      ends.reserve(2 * line.size());
      for (qsizetype i = 0; i + 1 < line.size(); ++i) {
        add_dashes(ends, line[i], line[i + 1], pattern);
      }
      // Square ends close the corners; the ends of dashes are flat.
      pen.setCapStyle(pattern.empty() ? Qt::SquareCap : Qt::FlatCap);
      pen.setStyle(Qt::SolidLine);
      painter.setPen(pen);
      painter.drawLines(ends.data(), static_cast<int>(ends.size() / 2));
      return;
    }
    case Care::fast: {
      const bool twice = pen.widthF() > 2;
      pen.setWidth(1);
      painter.setPen(pen);
      painter.drawPolyline(line);
      if (!twice) return;
      line.translate(0, 1);
      painter.drawPolyline(line);
    }
  }
}

}  // namespace kvspan::gui
