// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/head_map.h"

#include <QKeyEvent>
#include <QMouseEvent>
#include <algorithm>
#include <cmath>

#include "gui/paint/map_cells.h"
#include "gui/paint/theme.h"

namespace kvspan::gui {

namespace {

// Of pictures, pixels: cells and their means; a cell.
constexpr double kWholeWidth = 960, kWholeHeight = 640;
constexpr double kLeastCell = 12, kMostWide = 110, kMostHigh = 40;
constexpr double kLeast = 0.05;  // range of the colour bar

}  // namespace

HeadMap::HeadMap(Document& document, const HeadTable& table, QWidget* parent)
    : QWidget(parent), document_(document), table_(table) {
  setFocusPolicy(Qt::StrongFocus);
  setMouseTracking(true);
  setAccessibleName("layers and heads");
  setMinimumSize(160, 90);
}

void HeadMap::refresh() {
  low_ = INFINITY;
  high_ = -INFINITY;
  for (int l = 0; l < table_.layers(); ++l) {
    for (int h = 0; h < table_.heads(); ++h) {
      if (std::isnan(table_.at(l, h))) continue;
      low_ = std::min(low_, table_.at(l, h));
      high_ = std::max(high_, table_.at(l, h));
    }
  }
  if (table_.is_difference()) {
    high_ = std::max({std::abs(low_), std::abs(high_), 1e-3});
    low_ = -high_;
  } else if (high_ - low_ < kLeast) {
    // What is all but equal shall not look as if it differed.
    low_ = std::clamp((high_ + low_ - kLeast) / 2, 0.0, 1 - kLeast);
    high_ = low_ + kLeast;
  }
  update();
}

void HeadMap::paintEvent(QPaintEvent*) {
  QPainter painter(this);
  painter.setRenderHint(QPainter::Antialiasing, false);
  painter.fillRect(rect(), theme().paper);
  if (table_.layers() == 0 || !std::isfinite(low_)) return;
  const Geometry g = geometry();
  painter.setPen(theme().ink);
  painter.drawText(QRectF(g.cells.left(), 2, width() - g.cells.left() - 4, g.line),
                   Qt::AlignLeft | Qt::AlignVCenter, caption);
  const bool numbers = has_room(g);
  for (int l = 0; l < table_.layers(); ++l) {
    for (int h = 0; h < table_.heads(); ++h) {
      cell(painter, g.cell(l, h), table_.at(l, h), numbers);
    }
    cell(painter, g.row_mean(l), table_.mean(l, -1), numbers);
  }
  for (int h = 0; h < table_.heads(); ++h) {
    cell(painter, g.column_mean(h), table_.mean(-1, h), numbers);
  }
  cell(painter,
       QRectF(g.row_mean(0).left(), g.column_mean(0).top(), g.row_mean(0).width(),
              g.column_mean(0).height()),
       table_.mean(-1, -1), numbers);
  axes(painter, g);
  bar(painter, g);
  frame(painter, g);
}

void HeadMap::mouseMoveEvent(QMouseEvent* event) {
  const auto [layer, head] = hit(event->position());
  if (hovered) hovered(layer, head);
}

void HeadMap::leaveEvent(QEvent*) {
  if (hovered) hovered(-1, -1);
}

void HeadMap::mousePressEvent(QMouseEvent* event) {
  setFocus();
  const auto [layer, head] = hit(event->position());
  focus(layer, head < 0 ? -1 : head / table_.group());
}

void HeadMap::keyPressEvent(QKeyEvent* event) {
  const Focus now = document_.focus();
  const int stored = table_.heads() / std::max(1, table_.group());
  const auto step = [](int at, int by, int count) { return std::clamp(at + by, 0, count - 1); };
  int layer = now.layer, head = now.head;
  switch (event->key()) {
    case Qt::Key_Up:
    case Qt::Key_Down:
      layer = step(layer, event->key() == Qt::Key_Up ? -1 : 1, table_.layers());
      break;
    case Qt::Key_Left:
    case Qt::Key_Right:
      head = step(head, event->key() == Qt::Key_Left ? -1 : 1, stored);
      break;
    case Qt::Key_Home:
      layer = head = 0;
      break;
    case Qt::Key_End:
      layer = table_.layers() - 1;
      head = stored - 1;
      break;
    case Qt::Key_Escape:
      return focus(-1, -1);
    default:
      event->ignore();
      return;
  }
  if (table_.layers() > 0) focus(std::max(layer, 0), std::max(head, 0));
}

void HeadMap::focus(int layer, int head) {
  Focus now = document_.focus();
  now.layer = layer;
  now.head = head;
  document_.set_focus(now);
}

HeadMap::Edges HeadMap::edges() const {
  const QFontMetricsF metrics(font());
  Edges e;
  e.line = metrics.height() + 4;
  e.left = metrics.horizontalAdvance("layer 000") + 8;
  e.right = metrics.horizontalAdvance("100.0 %") + 46;
  e.top = 1.5 * e.line + 2;  // the bar's highest number reaches above the cells
  e.bottom = 2 * e.line;
  e.number = metrics.horizontalAdvance("-100.0") + 6;
  return e;
}

HeadMap::Geometry HeadMap::geometry() const {
  const Edges e = edges();
  Geometry g;
  g.line = e.line;
  g.mean_high = std::min(g.line, (height() - e.top - e.bottom) / 6);
  const int columns = table_.heads();
  const double room = width() - e.left - e.right - kGap;
  // Means are as wide as a cell, but at least as a number.
  g.wide = room / (columns + 1);
  g.mean_wide = std::max(g.wide, std::min(e.number, room / 6));
  g.wide = std::min(g.wide, (room - g.mean_wide) / columns);
  g.high = (height() - e.top - e.bottom - g.mean_high - kGap) / table_.layers();
  g.cells = QRectF(e.left, e.top, g.wide * columns, g.high * table_.layers());
  return g;
}

QSize HeadMap::picture_size() const {
  const Edges e = edges();
  const int columns = std::max(1, table_.heads());
  const int rows = std::max(1, table_.layers());
  const double wide = std::clamp(kWholeWidth / (columns + 1), kLeastCell, kMostWide);
  // Means take at most a sixth.
  const double high =
      std::max(5 * e.line / rows, std::clamp(kWholeHeight / rows, kLeastCell, kMostHigh));
  const double cells = e.left + wide * columns + kGap + std::max(wide, e.number) + e.right;
  const double words = e.left + QFontMetricsF(font()).horizontalAdvance(caption) + 8;
  return QSizeF(std::max(cells, words), e.top + high * rows + kGap + e.line + e.bottom).toSize();
}

bool HeadMap::has_room(const Geometry& g) const {
  const QFontMetricsF metrics(font());
  return g.wide >= metrics.horizontalAdvance("-100.0") + 4 && g.high >= metrics.height() - 1;
}

QColor HeadMap::colour(double value) const {
  const Theme& t = theme();
  if (std::isnan(value)) return t.unresident;
  if (!table_.is_difference()) return map_colour((value - low_) / (high_ - low_));
  // More memory is worse, more attention is better.
  const bool better = (value > 0) == (document_.display().head_figure == HeadFigure::retained_mass);
  return mix(t.paper, better ? t.good : t.bad, std::min(1.0, std::abs(value) / high_));
}

void HeadMap::cell(QPainter& painter, const QRectF& place, double value, bool number) const {
  fill_cell(painter, place, colour(value));
  if (!number || std::isnan(value)) return;
  const QColor ink = text_on(colour(value));
  painter.setPen(ink);
  const QString sign = table_.is_difference() && value > 0 ? "+" : "";
  painter.drawText(place, Qt::AlignCenter, sign + QString::number(100 * value, 'f', 1));
}

void HeadMap::axes(QPainter& painter, const Geometry& g) const {
  painter.setPen(theme().ink);
  const QFontMetricsF metrics(font());
  const int rows = label_step(metrics.height(), g.high);
  for (int l = 0; l < table_.layers(); l += rows) {
    const QRectF cell = g.row_mean(l);
    painter.drawText(QRectF(0, cell.center().y() - g.line / 2, g.cells.left() - 6, g.line),
                     Qt::AlignRight | Qt::AlignVCenter,
                     QString("layer %1").arg(table_.model_layer(l)));
  }
  const QString name = table_.group() > 1 ? "query head %1" : "head %1";
  const bool words = g.wide > metrics.horizontalAdvance(name) + 4;
  const int columns = words ? 1 : label_step(metrics.horizontalAdvance("00") + 6, g.wide);
  const double y = g.cells.bottom() + kGap + g.mean_high;
  for (int h = 0; h < table_.heads(); h += columns) {
    painter.drawText(QRectF(g.column_mean(h).center().x() - 60, y, 120, g.line), Qt::AlignCenter,
                     words ? name.arg(h) : QString::number(h));
  }
  painter.setPen(theme().faint);
  const QRectF corner = g.row_mean(0);
  painter.drawText(QRectF(corner.left() - 20, y, corner.width() + 40, g.line), Qt::AlignCenter,
                   "mean");
  painter.drawText(QRectF(0, g.cells.bottom() + kGap, g.cells.left() - 6, g.mean_high),
                   Qt::AlignRight | Qt::AlignVCenter | Qt::TextDontClip, "mean");
  if (!words) {
    painter.drawText(QRectF(g.cells.left(), y + g.line - 4, g.cells.width(), g.line),
                     Qt::AlignCenter, table_.group() > 1 ? "query head" : "head");
  }
}

void HeadMap::bar(QPainter& painter, const Geometry& g) const {
  const QRectF place(g.row_mean(0).right() + 16, g.cells.top(), 12, g.cells.height());
  const auto value = [this](double share) { return low_ + share * (high_ - low_); };
  draw_colour_bar(
      painter, place, g.line, [&](double share) { return colour(value(share)); },
      [&](double share) {
        const bool difference = table_.is_difference();
        return (difference && share > 0.5 ? "+" : "") +
               percent_text(value(share)).replace(" %", difference ? "" : " %");
      });
}

void HeadMap::frame(QPainter& painter, const Geometry& g) const {
  const Focus focus = document_.focus();
  if (focus.layer < 0 && focus.head < 0) return;
  QRectF place = g.cells;
  if (focus.layer >= 0) {
    place.setTop(g.cell(focus.layer, 0).top());
    place.setHeight(g.high);
  }
  if (focus.head >= 0) {
    place.setLeft(g.cell(0, focus.head * table_.group()).left());
    place.setWidth(g.wide * table_.group());
  }
  painter.setBrush(Qt::NoBrush);
  painter.setPen(QPen(theme().paper, 4));
  painter.drawRect(place);
  painter.setPen(QPen(theme().bad, 2));
  painter.drawRect(place);
}

std::pair<int, int> HeadMap::hit(const QPointF& at) const {
  if (table_.layers() == 0) return {-1, -1};
  const Geometry g = geometry();
  const auto index = [](double place, double size, int count) {
    const int i = static_cast<int>(std::floor(place / size));
    return i < 0 || i >= count ? -1 : i;
  };
  return {index(at.y() - g.cells.top(), g.high, table_.layers()),
          index(at.x() - g.cells.left(), g.wide, table_.heads())};
}

}  // namespace kvspan::gui
