// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/curve_plot.h"

#include <QKeyEvent>
#include <QMouseEvent>
#include <algorithm>
#include <cmath>
#include <utility>

#include "gui/model/numbers.h"
#include "gui/paint/labels.h"
#include "gui/paint/theme.h"
#include "sim/report/axes.h"

namespace kvspan::gui {
namespace {

constexpr double kPointRadius = 3.6;  // radius of a point
constexpr double kNearPoint = 14;     // pixels from the mouse to a point
constexpr double kLabelGap = kPointRadius + 4;
constexpr int kTicks = 8;

}  // namespace

CurvePlot::CurvePlot(QWidget* parent) : QWidget(parent) {
  setFocusPolicy(Qt::StrongFocus);
  setMouseTracking(true);
  setMinimumSize(240, 160);
  setAccessibleName("curves of quality against footprint");
}

void CurvePlot::set(CurveChart chart) {
  chart_ = std::move(chart);
  cursor_.reset();
  line_ = -1;
  set_ranges();
  update();
}

// Footprints that all lie close together get the room to be told apart; what is grey may be cut.
void CurvePlot::set_ranges() {
  double x0 = INFINITY, x1 = -INFINITY, y0 = INFINITY, y1 = -INFINITY;
  const auto take = [](double value, double& low, double& high) {
    low = std::min(low, value);
    high = std::max(high, value);
  };
  for (const CurveChart::Line& line : chart_.lines) {
    for (const CurveChart::Point& p : line.points) {
      if (line.faint) continue;
      take(p.x, x0, x1);
      take(p.y, y0, y1);
      take(p.low, y0, y1);
      take(p.high, y0, y1);
    }
  }
  for (const QPointF& corner : chart_.front) take(corner.x(), x0, x1);
  if (chart_.threshold) take(*chart_.threshold, y0, y1);
  if (!(x0 <= x1)) x0 = y0 = 0, x1 = y1 = 1;
  const double wide = std::max(x1 - x0, 0.01);
  const double high = std::max(y1 - y0, 0.02);
  x_low_ = x0 < 0.35 * x1 ? 0 : x0 - 0.05 * wide;
  x_high_ = x1 + 0.05 * wide;
  y_low_ = y0 - 0.05 * high;
  y_high_ = y1 + 0.07 * high;
}

void CurvePlot::lay_out() {
  const QFontMetricsF metrics(font());
  const double line = metrics.height();
  const double left = metrics.horizontalAdvance("100.0") + line + 16;
  const double top = chart_.caption.isEmpty() ? 8 : line + 12;
  area_ = QRectF(left, top, std::max(10.0, width() - left - 12),
                 std::max(10.0, height() - top - 2 * line - 14));
}

QPointF CurvePlot::at(double x, double y) const {
  return {area_.left() + (x - x_low_) / (x_high_ - x_low_) * area_.width(),
          area_.bottom() - (y - y_low_) / (y_high_ - y_low_) * area_.height()};
}

QColor CurvePlot::colour_of(const CurveChart::Line& line) const {
  if (!line.faint) return run_colour(line.colour);
  return mix(theme().paper, theme().faint, 0.5);
}

bool CurvePlot::stands_out(std::size_t line) const {
  return static_cast<int>(line) == line_ || (cursor_ && cursor_->line == line);
}

void CurvePlot::paintEvent(QPaintEvent* /*event*/) {
  QPainter painter(this);
  painter.setRenderHint(QPainter::Antialiasing);
  painter.fillRect(rect(), theme().paper);
  lay_out();
  paint_axes(painter);
  painter.save();
  painter.setClipRect(area_.adjusted(-1, -1, 1, 1));
  paint_front(painter);
  // What has a name lies above what has none.
  for (const bool faint : {true, false}) {
    for (std::size_t i = 0; i < chart_.lines.size(); ++i) {
      if (chart_.lines[i].faint == faint && (!faint || stands_out(i))) paint_spread(painter, i);
    }
    for (std::size_t i = 0; i < chart_.lines.size(); ++i) {
      if (chart_.lines[i].faint == faint) paint_line(painter, i);
    }
  }
  painter.restore();
  paint_threshold(painter);
  paint_labels(painter);
  for (std::size_t i = 0; i < chart_.lines.size(); ++i) {
    for (std::size_t p = 0; p < chart_.lines[i].points.size(); ++p) {
      const CurveChart::Point& point = chart_.lines[i].points[p];
      const bool under = cursor_ == Place{i, p};
      if (!under && (item_ < 0 || point.item != item_)) continue;
      painter.setBrush(Qt::NoBrush);
      painter.setPen(QPen(under ? theme().accent : theme().ink, 1.6));
      painter.drawEllipse(at(point), 2 * kPointRadius, 2 * kPointRadius);
    }
  }
}

void CurvePlot::paint_axes(QPainter& painter) const {
  const Theme& t = theme();
  const double line = QFontMetricsF(font()).height();
  painter.setPen(t.ink);
  painter.drawText(QRectF(area_.left(), 2, area_.width(), line + 6),
                   Qt::AlignLeft | Qt::AlignVCenter,
                   QFontMetricsF(font()).elidedText(chart_.caption, Qt::ElideRight, area_.width()));
  for (const Tick& tick : ticks(100 * x_low_, 100 * x_high_, kTicks)) {
    const double x = std::round(at(tick.value / 100, 0).x()) + 0.5;
    painter.setPen(t.grid);
    painter.drawLine(QPointF(x, area_.top()), QPointF(x, area_.bottom()));
    painter.setPen(t.ink);
    painter.drawText(QRectF(x - 40, area_.bottom() + 4, 80, line), Qt::AlignCenter,
                     QString::fromStdString(tick.label));
  }
  for (const Tick& tick : ticks(100 * y_low_, 100 * y_high_, kTicks)) {
    const double y = std::round(at(0, tick.value / 100).y()) + 0.5;
    painter.setPen(t.grid);
    painter.drawLine(QPointF(area_.left(), y), QPointF(area_.right(), y));
    painter.setPen(t.ink);
    painter.drawText(QRectF(0, y - line / 2, area_.left() - 6, line),
                     Qt::AlignRight | Qt::AlignVCenter, QString::fromStdString(tick.label));
  }
  painter.setPen(t.faint);
  painter.drawLine(area_.bottomLeft(), area_.bottomRight());
  painter.drawLine(area_.bottomLeft(), area_.topLeft());
  painter.setPen(t.ink);
  painter.drawText(QRectF(area_.left(), area_.bottom() + line + 6, area_.width(), line),
                   Qt::AlignCenter, chart_.x_name);
  painter.save();
  painter.translate(line / 2 + 4, area_.center().y());
  painter.rotate(-90);
  painter.drawText(QRectF(-area_.height() / 2, -line / 2, area_.height(), line), Qt::AlignCenter,
                   chart_.y_name);
  painter.restore();
}

// Steps: what is reached with at most so much.
void CurvePlot::paint_front(QPainter& painter) const {
  QPolygonF steps;
  for (const QPointF& point : chart_.front) {
    const QPointF corner = at(point.x(), point.y());
    if (!steps.isEmpty()) steps << QPointF(corner.x(), steps.last().y());
    steps << corner;
  }
  QColor colour = theme().faint;
  colour.setAlphaF(0.4F);
  painter.setPen(QPen(colour, 5, Qt::SolidLine, Qt::RoundCap, Qt::MiterJoin));
  painter.drawPolyline(steps);
}

void CurvePlot::paint_spread(QPainter& painter, std::size_t line) const {
  const CurveChart::Line& of = chart_.lines[line];
  QColor colour = colour_of(of);
  if (chart_.bands && of.points.size() > 1) {
    const bool front = std::any_of(of.points.begin(), of.points.end(),
                                   [](const CurveChart::Point& p) { return p.front; });
    if (!front && !stands_out(line)) return;  // many bands are mud
    QPolygonF band;
    for (const CurveChart::Point& p : of.points) band << at(p.x, p.high);
    for (auto p = of.points.rbegin(); p != of.points.rend(); ++p) band << at(p->x, p->low);
    colour.setAlphaF(stands_out(line) ? 0.3F : 0.12F);
    painter.setPen(Qt::NoPen);
    painter.setBrush(colour);
    painter.drawPolygon(band);
    return;
  }
  colour.setAlphaF(stands_out(line) ? 1.0F : 0.45F);
  painter.setPen(QPen(colour, 1));
  for (const CurveChart::Point& p : of.points) {
    if (p.high > p.low) painter.drawLine(at(p.x, p.low), at(p.x, p.high));
    if (p.right > p.left) painter.drawLine(at(p.left, p.y), at(p.right, p.y));
  }
}

void CurvePlot::paint_line(QPainter& painter, std::size_t line) const {
  const CurveChart::Line& of = chart_.lines[line];
  const QColor colour = colour_of(of);
  const bool out = stands_out(line);
  QPolygonF points;
  for (const CurveChart::Point& p : of.points) points << at(p);
  painter.setBrush(Qt::NoBrush);
  painter.setPen(QPen(out && of.faint ? theme().ink : colour,
                      out        ? 3
                      : of.faint ? 1
                                 : 1.8,
                      run_dash(of.faint ? 0 : of.colour)));
  painter.drawPolyline(points);
  const double radius = of.faint && !out ? kPointRadius / 2 : kPointRadius;
  for (const QPointF& point : points) {
    painter.setPen(QPen(of.bound ? colour : theme().paper, of.bound ? 1.6 : 0.8));
    painter.setBrush(of.bound ? theme().paper : colour);
    painter.drawEllipse(point, radius, radius);
  }
  if (of.faint || !of.critical || !chart_.threshold) return;
  const QPointF reached = at(*of.critical, *chart_.threshold);
  painter.setPen(QPen(colour, 1, Qt::DotLine));
  painter.drawLine(reached, QPointF(reached.x(), area_.bottom()));
  painter.setPen(QPen(colour, 1.4));
  painter.setBrush(theme().paper);
  painter.drawEllipse(reached, kPointRadius - 0.6, kPointRadius - 0.6);
}

void CurvePlot::paint_threshold(QPainter& painter) const {
  if (!chart_.threshold) return;
  const double y = at(0, *chart_.threshold).y();
  painter.setPen(QPen(theme().accent, 1, Qt::DashLine));
  painter.drawLine(QPointF(area_.left(), y), QPointF(area_.right(), y));
  painter.drawText(QPointF(area_.left() + 6, y - 4), chart_.threshold_name);
}

std::vector<QLineF> CurvePlot::drawn() const {
  std::vector<QLineF> out;
  for (const CurveChart::Line& line : chart_.lines) {
    for (std::size_t p = 1; !line.faint && p < line.points.size(); ++p)
      out.emplace_back(at(line.points[p - 1]), at(line.points[p]));
  }
  for (std::size_t i = 1; i < chart_.front.size(); ++i) {
    const QPointF from = at(chart_.front[i - 1].x(), chart_.front[i - 1].y());
    const QPointF to = at(chart_.front[i].x(), chart_.front[i].y());
    out.emplace_back(from, QPointF(to.x(), from.y()));
    out.emplace_back(QPointF(to.x(), from.y()), to);
  }
  if (chart_.threshold)
    out.emplace_back(at(x_low_, *chart_.threshold), at(x_high_, *chart_.threshold));
  return out;
}

// One label a line, beside the last of its points that has room for it.
void CurvePlot::paint_labels(QPainter& painter) const {
  const QFontMetricsF metrics(font());
  const std::vector<QLineF> lines = drawn();
  std::vector<QRectF> taken;
  if (chart_.threshold) {
    const double y = at(0, *chart_.threshold).y();
    taken.emplace_back(area_.left() + 6, y - metrics.height(),
                       metrics.horizontalAdvance(chart_.threshold_name), metrics.height());
  }
  for (const CurveChart::Line& line : chart_.lines) {
    for (const CurveChart::Point& p : line.points) {
      if (line.faint) continue;
      taken.emplace_back(at(p) - QPointF(kPointRadius, kPointRadius),
                         QSizeF(2 * kPointRadius, 2 * kPointRadius));
    }
  }
  const auto covered = [&](const QRectF& label) {
    const QRectF letters = label.adjusted(0, 2, 0, -2);
    const bool on_line = std::any_of(lines.begin(), lines.end(),
                                     [&](const QLineF& line) { return crosses(line, letters); });
    return on_line ? kNoPlace : std::size_t{0};
  };
  for (const CurveChart::Line& line : chart_.lines) {
    if (line.faint || line.points.empty()) continue;
    const QSizeF size(metrics.horizontalAdvance(line.name) + 4, metrics.height());
    for (auto p = line.points.rbegin(); p != line.points.rend(); ++p) {
      const auto place = free_place(places_beside(at(*p), size, kLabelGap), area_, taken, covered);
      if (!place) continue;
      taken.push_back(*place);
      QColor paper = theme().paper;
      paper.setAlphaF(0.75F);
      painter.fillRect(place->adjusted(0, 1, 0, -1), paper);
      painter.setPen(QPen(colour_of(line), 1));
      lead_to(painter, at(*p), *place, kLabelGap);
      painter.drawText(*place, Qt::AlignCenter | Qt::TextDontClip, line.name);
      break;
    }
  }
}

// ---- Mouse and keys -----------------------------------------------------------------------------

QString CurvePlot::readout() const {
  if (!cursor_) return {};
  const CurveChart::Point& p = chart_.lines[cursor_->line].points[cursor_->point];
  const auto spread = [](double value, double low, double high) {
    QString text = percent_text(value);
    if (percent_text(low) == percent_text(high)) return text;
    return QString("%1 (%2 to %3)").arg(text, percent_text(low).chopped(2), percent_text(high));
  };
  return QString("%1: footprint %2, %3 %4%5")
      .arg(p.text, spread(p.x, p.left, p.right), QString(chart_.y_name).remove(", %"),
           spread(p.y, p.low, p.high), p.front ? ", on the front" : "");
}

void CurvePlot::set_line(int line) {
  if (std::exchange(line_, line) != line) update();
}

void CurvePlot::set_item(int item) {
  if (std::exchange(item_, item) != item) update();
}

void CurvePlot::set_cursor(std::optional<Place> place) {
  if (place == cursor_) return;
  cursor_ = place;
  if (cursor_moved) cursor_moved();
  update();
}

// Points of lines that have a name come before others as near.
std::optional<CurvePlot::Place> CurvePlot::nearest(const QPointF& where) const {
  std::optional<Place> best;
  double least = kNearPoint;
  if (!area_.adjusted(-8, -8, 8, 8).contains(where)) return best;
  for (std::size_t i = 0; i < chart_.lines.size(); ++i) {
    for (std::size_t p = 0; p < chart_.lines[i].points.size(); ++p) {
      const double distance = QLineF(where, at(chart_.lines[i].points[p])).length();
      if (distance >= least) continue;
      least = distance;
      best = Place{i, p};
    }
  }
  return best;
}

void CurvePlot::mouseMoveEvent(QMouseEvent* event) { set_cursor(nearest(event->position())); }

void CurvePlot::leaveEvent(QEvent* /*event*/) { set_cursor(std::nullopt); }

void CurvePlot::mousePressEvent(QMouseEvent* event) {
  setFocus();
  set_cursor(nearest(event->position()));
  choose();
}

void CurvePlot::choose() {
  if (!cursor_ || !chosen) return;
  const CurveChart::Point& point = chart_.lines[cursor_->line].points[cursor_->point];
  if (point.item >= 0) chosen(point.item);
}

void CurvePlot::step(int along, int across) {
  const auto lines = static_cast<int>(chart_.lines.size());
  if (lines == 0) return;
  Place next = cursor_.value_or(Place{});
  if (cursor_ && across != 0) {
    const int line = std::clamp(static_cast<int>(next.line) + across, 0, lines - 1);
    next.line = static_cast<std::size_t>(line);
  }
  const auto points = static_cast<int>(chart_.lines[next.line].points.size());
  if (points == 0) return;
  const int point = static_cast<int>(next.point) + (cursor_ ? along : 0);
  next.point = static_cast<std::size_t>(std::clamp(point, 0, points - 1));
  set_cursor(next);
}

void CurvePlot::keyPressEvent(QKeyEvent* event) {
  switch (event->key()) {
    case Qt::Key_Left:
      return step(-1, 0);
    case Qt::Key_Right:
      return step(1, 0);
    case Qt::Key_Up:
      return step(0, -1);
    case Qt::Key_Down:
      return step(0, 1);
    case Qt::Key_Return:
    case Qt::Key_Enter:
      return choose();
    default:
      event->ignore();
  }
}

}  // namespace kvspan::gui
