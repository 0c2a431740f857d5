// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/grid_map.h"

#include <QKeyEvent>
#include <QMouseEvent>
#include <algorithm>
#include <cmath>
#include <utility>

#include "gui/paint/map_cells.h"
#include "gui/paint/theme.h"

namespace kvspan::gui {
namespace {

// Of pictures, pixels: all cells; one cell.
constexpr double kAllWidth = 900;
constexpr double kLeastWide = 14, kWidestCell = 110, kLeastHigh = 15, kHighestCell = 22;
constexpr double kMostName = 300;  // of a row
constexpr double kBar = 12;

}  // namespace

GridMap::GridMap(QWidget* parent) : QWidget(parent) {
  setFocusPolicy(Qt::StrongFocus);
  setMouseTracking(true);
  setAccessibleName("matrix of two parameters");
}

void GridMap::set(GridContent content) {
  content_ = std::move(content);
  cursor_ = {-1, -1};
  low_ = INFINITY;
  high_ = -INFINITY;
  for (const double value : content_.values) {
    if (std::isnan(value)) continue;
    low_ = std::min(low_, value);
    high_ = std::max(high_, value);
  }
  if (low_ == high_) high_ = low_ + std::max(std::abs(low_), 1.0) * 1e-3;
  const Edges e = edges(kLeastWide);
  setMinimumSize(static_cast<int>(e.left + e.right + kLeastWide * column_count()),
                 static_cast<int>(e.top + e.bottom + kLeastHigh * row_count()));
  updateGeometry();
  update();
}

double GridMap::widest(const std::vector<QString>& texts) const {
  const QFontMetricsF metrics(font());
  double most = 0;
  for (const QString& text : texts) most = std::max(most, metrics.horizontalAdvance(text));
  return most;
}

GridMap::Edges GridMap::edges(double cell_width) const {
  const QFontMetricsF metrics(font());
  Edges e;
  e.line = metrics.height() + 4;
  e.left = std::min(kMostName, std::max(widest(content_.rows),
                                        metrics.horizontalAdvance(content_.row_title))) +
           14;
  const double names = widest(content_.columns);
  e.upright = names + 8 > cell_width;
  e.top = 2 * e.line + 6 + (e.upright ? std::min(names, kMostName) + 6 : e.line);
  e.right = kBar + 26 + metrics.horizontalAdvance("100.0 MiB");
  e.bottom = 8;
  return e;
}

QRectF GridMap::cells() const {
  // Whether names stand on end depends on the width, and that on the edges at its sides alone.
  const Edges sides = edges(kWidestCell);
  const int columns = std::max(1, column_count());
  const double wide = std::max(1.0, (width() - sides.left - sides.right) / columns);
  const Edges e = edges(wide);
  return {e.left, e.top, wide * columns, std::max(1.0, height() - e.top - e.bottom)};
}

QRectF GridMap::cell(int row, int column) const {
  const QRectF all = cells();
  const double wide = all.width() / std::max(1, column_count());
  const double high = all.height() / std::max(1, row_count());
  return {all.left() + column * wide, all.top() + row * high, wide, high};
}

QSize GridMap::picture_size() const {
  const int columns = std::max(1, column_count());
  const int rows = std::max(1, row_count());
  const double number = widest(content_.texts) + 8;
  const double name = std::min(widest(content_.columns) + 10, kWidestCell);
  const double wide =
      std::clamp(kAllWidth / columns, kLeastWide, std::max({number, name, kLeastWide}));
  const Edges e = edges(wide);
  const double high = std::max(kHighestCell, 5 * e.line / rows);
  const double words = e.left + QFontMetricsF(font()).horizontalAdvance(content_.caption) + 12;
  return QSizeF(std::max(e.left + wide * columns + e.right, words), e.top + high * rows + e.bottom)
      .toSize();
}

QColor GridMap::colour(double value) const {
  return std::isnan(value) ? theme().unresident : map_colour((value - low_) / (high_ - low_));
}

void GridMap::paintEvent(QPaintEvent* /*event*/) {
  QPainter painter(this);
  painter.fillRect(rect(), theme().paper);
  if (content_.values.empty()) return;
  const QRectF first = cell(0, 0);
  const QFontMetricsF metrics(font());
  const bool numbers =
      first.width() >= widest(content_.texts) + 4 && first.height() >= metrics.height() - 2;
  for (int r = 0; r < row_count(); ++r) {
    for (int c = 0; c < column_count(); ++c) {
      const auto at = static_cast<std::size_t>(std::int64_t{r} * column_count() + c);
      const QColor fill = colour(content_.values[at]);
      fill_cell(painter, cell(r, c), fill);
      if (!numbers || std::isnan(content_.values[at])) continue;
      painter.setPen(text_on(fill));
      painter.drawText(cell(r, c), Qt::AlignCenter, content_.texts[at]);
    }
  }
  paint_names(painter);
  const QRectF all = cells();
  draw_colour_bar(
      painter, QRectF(all.right() + 14, all.top(), kBar, std::min(all.height(), 320.0)),
      metrics.height() + 4, [](double share) { return map_colour(share); },
      [this](double share) { return content_.label(low_ + share * (high_ - low_)); });
  if (cursor_.first < 0) return;
  const QRectF place = cell(cursor_.first, cursor_.second);
  painter.setBrush(Qt::NoBrush);
  painter.setPen(QPen(theme().paper, 4));
  painter.drawRect(place);
  painter.setPen(QPen(theme().bad, 2));
  painter.drawRect(place);
}

void GridMap::paint_names(QPainter& painter) const {
  const QFontMetricsF metrics(font());
  const QRectF all = cells();
  const QRectF first = cell(0, 0);
  const Edges e = edges(first.width());
  painter.setPen(theme().ink);
  painter.drawText(QRectF(8, 2, width() - 12, e.line), Qt::AlignLeft | Qt::AlignVCenter,
                   metrics.elidedText(content_.caption, Qt::ElideRight, width() - 12));
  painter.setPen(theme().faint);
  painter.drawText(QRectF(all.left(), e.line + 2, all.width(), e.line),
                   Qt::AlignHCenter | Qt::AlignVCenter | Qt::TextDontClip, content_.column_title);
  painter.drawText(QRectF(4, all.top() - e.line - 2, all.left() - 10, e.line),
                   Qt::AlignRight | Qt::AlignVCenter, content_.row_title);
  painter.setPen(theme().ink);
  const int rows = label_step(metrics.height() - 3, first.height());
  for (int r = 0; r < row_count(); r += rows) {
    const QRectF place = cell(r, 0);
    painter.drawText(QRectF(4, place.center().y() - e.line / 2, all.left() - 10, e.line),
                     Qt::AlignRight | Qt::AlignVCenter,
                     metrics.elidedText(content_.rows[static_cast<std::size_t>(r)], Qt::ElideRight,
                                        all.left() - 10));
  }
  const int columns = e.upright ? label_step(metrics.height() - 2, first.width()) : 1;
  for (int c = 0; c < column_count(); c += columns) {
    const QString& name = content_.columns[static_cast<std::size_t>(c)];
    const QPointF foot(cell(0, c).center().x(), all.top() - 5);
    if (!e.upright) {
      painter.drawText(QRectF(foot.x() - 100, foot.y() - e.line, 200, e.line), Qt::AlignCenter,
                       name);
      continue;
    }
    painter.save();
    painter.translate(foot);
    painter.rotate(-90);
    painter.drawText(QRectF(0, -e.line / 2, kMostName, e.line), Qt::AlignLeft | Qt::AlignVCenter,
                     metrics.elidedText(name, Qt::ElideRight, kMostName));
    painter.restore();
  }
}

std::pair<int, int> GridMap::hit(const QPointF& at) const {
  if (content_.values.empty()) return {-1, -1};
  const QRectF all = cells();
  if (!all.contains(at)) return {-1, -1};
  const QRectF first = cell(0, 0);
  const auto index = [](double place, double size, int count) {
    return std::clamp(static_cast<int>(place / size), 0, count - 1);
  };
  return {index(at.y() - all.top(), first.height(), row_count()),
          index(at.x() - all.left(), first.width(), column_count())};
}

void GridMap::set_cursor(std::pair<int, int> cursor) {
  if (std::exchange(cursor_, cursor) == cursor) return;
  if (cursor_moved) cursor_moved();
  update();
}

void GridMap::mouseMoveEvent(QMouseEvent* event) { set_cursor(hit(event->position())); }

void GridMap::leaveEvent(QEvent* /*event*/) { set_cursor({-1, -1}); }

void GridMap::mousePressEvent(QMouseEvent* event) {
  setFocus();
  set_cursor(hit(event->position()));
  if (cursor_.first >= 0 && chosen) chosen();
}

void GridMap::keyPressEvent(QKeyEvent* event) {
  if (content_.values.empty()) return QWidget::keyPressEvent(event);
  auto [row, column] = cursor_;
  switch (event->key()) {
    case Qt::Key_Up:
    case Qt::Key_Down:
      row += event->key() == Qt::Key_Up ? -1 : 1;
      break;
    case Qt::Key_Left:
    case Qt::Key_Right:
      column += event->key() == Qt::Key_Left ? -1 : 1;
      break;
    case Qt::Key_Return:
    case Qt::Key_Enter:
      if (row >= 0 && chosen) chosen();
      return;
    default:
      return QWidget::keyPressEvent(event);
  }
  set_cursor({std::clamp(row, 0, row_count() - 1), std::clamp(column, 0, column_count() - 1)});
}

}  // namespace kvspan::gui
