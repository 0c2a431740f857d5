// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/minimap.h"

#include <QMouseEvent>
#include <QPainter>
#include <algorithm>
#include <cmath>

#include "gui/paint/plot.h"
#include "gui/paint/theme.h"

namespace kvspan::gui {

Minimap::Minimap(Document& document, const Plot& plot, QWidget* parent)
    : QWidget(parent), document_(document), plot_(plot) {
  setFixedHeight(36);
  setMouseTracking(true);
  setAccessibleName("Map of all rows");
  connect(&document_, &Document::zoom_changed, this, [this] { update(); });
  connect(&document_, &Document::selection_changed, this, [this] { update(); });
}

void Minimap::content_changed() {
  shape_ = QPixmap();
  update();
}

void Minimap::resizeEvent(QResizeEvent* /*event*/) { content_changed(); }

void Minimap::paintEvent(QPaintEvent* /*event*/) {
  QPainter painter(this);
  const Theme& t = theme();
  painter.fillRect(rect(), t.paper);
  if (document_.rows() == 0 || plot_.content().lines.empty()) return;
  const QRectF area = strip();
  if (shape_.isNull() || shape_.devicePixelRatio() != devicePixelRatioF()) draw_shape();
  painter.drawPixmap(0, 0, shape_);
  const QRectF window = window_of(document_.zoom());
  QColor veil = t.paper;
  veil.setAlphaF(0.65F);
  painter.fillRect(QRectF(area.topLeft(), window.bottomLeft()), veil);
  painter.fillRect(QRectF(window.topRight(), area.bottomRight()), veil);
  const QRectF chosen = window_of(document_.selection());
  QColor band = t.accent;
  band.setAlphaF(0.5F);
  painter.fillRect(QRectF(chosen.left(), area.top(), std::max(1.0, chosen.width()), area.height()),
                   band);
  painter.setRenderHint(QPainter::Antialiasing);
  painter.setPen(QPen(t.faint, 1));
  painter.drawRect(window.adjusted(0.5, 0.5, -0.5, -0.5));
  painter.setPen(QPen(t.faint, 3, Qt::SolidLine, Qt::RoundCap));
  for (const double x : {window.left() + 0.5, window.right() - 0.5}) {
    painter.drawLine(QPointF(x, area.center().y() - 5), QPointF(x, area.center().y() + 5));
  }
}

void Minimap::mousePressEvent(QMouseEvent* event) {
  if (document_.rows() == 0) return;
  const double x = event->position().x();
  const QRectF window = window_of(document_.zoom());
  grip_ = grip_at(x);
  if (grip_ == Grip::none) {  // beside it: the window comes
    const RowIndex by = rows_of(x - window.center().x());
    document_.set_zoom({document_.zoom().begin + by, document_.zoom().end + by});
    grip_ = Grip::window;
  }
  pressed_ = x;
  before_ = document_.zoom();
}

void Minimap::mouseMoveEvent(QMouseEvent* event) {
  if (event->buttons() == Qt::NoButton) {
    const Grip grip = grip_at(event->position().x());
    setCursor(grip == Grip::none     ? Qt::ArrowCursor
              : grip == Grip::window ? Qt::OpenHandCursor
                                     : Qt::SizeHorCursor);
    return;
  }
  const RowIndex by = rows_of(event->position().x() - pressed_);
  Rows zoom = before_;
  if (grip_ == Grip::window) zoom = {zoom.begin + by, zoom.end + by};
  if (grip_ == Grip::left) zoom.begin = std::clamp<RowIndex>(zoom.begin + by, 0, zoom.end - 1);
  if (grip_ == Grip::right) {
    zoom.end = std::clamp<RowIndex>(zoom.end + by, zoom.begin + 1, document_.rows());
  }
  if (grip_ != Grip::none) document_.set_zoom(zoom);
}

void Minimap::mouseReleaseEvent(QMouseEvent* /*event*/) { grip_ = Grip::none; }

void Minimap::mouseDoubleClickEvent(QMouseEvent* /*event*/) { document_.zoom_out(); }

QRectF Minimap::strip() const {
  const QRectF area = plot_.area();
  return {area.left(), 3, area.width(), height() - 8.0};
}

QRectF Minimap::window_of(Rows rows) const {
  const QRectF area = strip();
  const double each = area.width() / static_cast<double>(document_.rows());
  return {area.left() + static_cast<double>(rows.begin) * each, area.top(),
          std::max(3.0, static_cast<double>(rows.size()) * each), area.height()};
}

RowIndex Minimap::rows_of(double pixels) const {
  return std::llround(pixels / strip().width() * static_cast<double>(document_.rows()));
}

Minimap::Grip Minimap::grip_at(double x) const {
  if (document_.rows() == 0) return Grip::none;
  const QRectF window = window_of(document_.zoom());
  if (std::abs(x - window.left()) <= 4) return Grip::left;
  if (std::abs(x - window.right()) <= 4) return Grip::right;
  return x > window.left() && x < window.right() ? Grip::window : Grip::none;
}

void Minimap::draw_shape() {
  shape_ = QPixmap(size() * devicePixelRatioF());
  shape_.setDevicePixelRatio(devicePixelRatioF());
  shape_.fill(theme().paper);
  QPainter painter(&shape_);
  painter.setRenderHint(QPainter::Antialiasing);
  const QRectF area = strip();
  const ChartLine& line = plot_.content().lines.back();
  const auto points = sample_line(
      line.measure, Columns({0, document_.rows()}, std::max(1, static_cast<int>(area.width()))));
  double low = 0;
  double high = 0;
  for (const QPointF& point : points) {
    low = std::min(low, point.y());
    high = std::max(high, point.y());
  }
  const double tall = high > low ? (area.height() - 2) / (high - low) : 0;
  const auto y_of = [&](double value) { return area.bottom() - (value - low) * tall; };
  const double wide = area.width() / static_cast<double>(document_.rows());
  QPolygonF polygon;
  for (const QPointF& point : points) {
    polygon << QPointF(area.left() + point.x() * wide, y_of(point.y()));
  }
  if (!polygon.empty()) {
    polygon.prepend(QPointF(polygon.front().x(), y_of(0)));
    polygon.append(QPointF(polygon.back().x(), y_of(0)));
  }
  QColor fill = run_colour(document_.runs()[static_cast<std::size_t>(line.run)].colour);
  fill.setAlphaF(0.35F);
  painter.setPen(Qt::NoPen);
  painter.setBrush(fill);
  painter.drawPolygon(polygon);
  painter.setRenderHint(QPainter::Antialiasing, false);
  painter.setPen(QPen(theme().grid, 1));
  painter.drawLine(QPointF(area.left(), area.bottom()), QPointF(area.right(), area.bottom()));
}

}  // namespace kvspan::gui
