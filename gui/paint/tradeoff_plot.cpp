// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/tradeoff_plot.h"

#include <QChart>
#include <QEvent>
#include <QGraphicsLayout>
#include <QKeyEvent>
#include <QLineSeries>
#include <QMouseEvent>
#include <QPolygonF>
#include <QScatterSeries>
#include <QValueAxis>
#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "gui/paint/labels.h"
#include "gui/paint/theme.h"

namespace kvspan::gui {

namespace {

constexpr std::array kSteps{1.0, 2.0, 5.0, 10.0};
constexpr double kMarker = 9;             // pixels across
constexpr double kGap = kMarker / 2 + 4;  // from the middle of a point to a label beside it
constexpr double kBetween = 2;            // between labels

QScatterSeries::MarkerShape shape_of(int mark) {
  static constexpr std::array kShapes{
      QScatterSeries::MarkerShapeCircle, QScatterSeries::MarkerShapeRectangle,
      QScatterSeries::MarkerShapeTriangle, QScatterSeries::MarkerShapeRotatedRectangle};
  return kShapes[static_cast<std::size_t>(mark) % kShapes.size()];
}

// The axis of shares in percent: 1, 2 or 5 times a power of ten apart.
void set_range(QValueAxis* axis, double low, double high) {
  const double rough = std::max(high - low, 1e-6) / 7;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  const auto factor =
      std::find_if(kSteps.begin(), kSteps.end(), [&](double f) { return f * power >= rough; });
  const double step = *factor * power;
  axis->setTickType(QValueAxis::TicksDynamic);
  axis->setTickAnchor(0);
  axis->setTickInterval(step);
  axis->setLabelFormat(step < 1 ? "%.1f" : "%.0f");
  axis->setRange(low, high);
}

}  // namespace

void draw_mark(QPainter& painter, const QPointF& centre, double size, int mark) {
  const double r = size / 2;
  const auto at = [&](double x, double y) { return centre + QPointF(x * r, y * r); };
  switch (shape_of(mark)) {
    case QScatterSeries::MarkerShapeRectangle:
      painter.drawPolygon(QPolygonF{at(-1, -1), at(1, -1), at(1, 1), at(-1, 1)});
      break;
    case QScatterSeries::MarkerShapeTriangle:
      painter.drawPolygon(QPolygonF{at(0, -1), at(1, 1), at(-1, 1)});
      break;
    case QScatterSeries::MarkerShapeRotatedRectangle:
      painter.drawPolygon(QPolygonF{at(0, -1), at(1, 0), at(0, 1), at(-1, 0)});
      break;
    default:
      painter.drawEllipse(centre, r, r);
  }
}

TradeoffPlot::TradeoffPlot(Document& document, QWidget* parent)
    : QChartView(new QChart, parent), document_(document), x_(new QValueAxis), y_(new QValueAxis) {
  setFocusPolicy(Qt::StrongFocus);
  setMouseTracking(true);
  setFrameShape(QFrame::NoFrame);
  setRenderHint(QPainter::Antialiasing);
  setAccessibleName("footprint against fidelity");
  setMinimumSize(200, 120);
  chart()->legend()->hide();
  chart()->setMargins(QMargins(2, 2, 8, 2));
  chart()->layout()->setContentsMargins(0, 0, 0, 0);
  chart()->setBackgroundRoundness(0);
  chart()->setAnimationOptions(QChart::NoAnimation);
  chart()->addAxis(x_, Qt::AlignBottom);
  chart()->addAxis(y_, Qt::AlignLeft);
}

void TradeoffPlot::set(const Tradeoff& tradeoff, double threshold, const QString& fidelity_name) {
  tradeoff_ = tradeoff;
  threshold_ = threshold;
  cursor_ = -1;
  chart()->removeAllSeries();
  double right = 0, low = threshold, high = threshold;
  for (const Tradeoff::Point& p : tradeoff_.points) {
    right = std::max(right, p.footprint);
    low = std::min(low, p.fidelity);
    high = std::max(high, p.most);
  }
  const double pad = std::max(0.02, 0.06 * (high - low));
  set_range(x_, 0, 104 * std::max(right, 0.05));
  set_range(y_, 100 * (low - pad), 100 * (high + pad));
  const QString axis_name = "KV footprint, % of a full cache";
  const QString bound = "; curve: the most that any eviction could retain, knowing the future";
  x_->setTitleText(axis_name + (tradeoff_.frontiers.empty() ? "" : bound));
  y_->setTitleText(fidelity_name + ", %");
  const Theme& t = theme();
  chart()->setBackgroundBrush(t.paper);
  setBackgroundBrush(t.paper);
  for (QValueAxis* axis : {x_, y_}) {
    axis->setLabelsColor(t.ink);
    axis->setTitleBrush(t.ink);
    axis->setGridLineColor(t.grid);
    axis->setLinePenColor(t.faint);
    QFont font = this->font();
    axis->setLabelsFont(font);
    axis->setTitleFont(font);
  }
  for (const Tradeoff::Group& group : tradeoff_.groups) draw_front(group.front);
  for (const auto& curve : tradeoff_.frontiers) draw_frontier(curve);
  for (const Tradeoff::Family& family : tradeoff_.families) draw_family(family);
  for (const Tradeoff::Point& p : tradeoff_.points) draw_point(p);
  auto* line = add_line(QPen(t.accent, 1, Qt::DashLine));
  line->append(x_->min(), 100 * threshold_);
  line->append(x_->max(), 100 * threshold_);
  viewport()->update();
}

void TradeoffPlot::set_cursor(int point) {
  if (point == cursor_) return;
  cursor_ = point;
  if (cursor_moved) cursor_moved(point);
  viewport()->update();
}

void TradeoffPlot::drawForeground(QPainter* painter, const QRectF&) {
  if (tradeoff_.points.empty()) return;
  const Theme& t = theme();
  painter->save();
  painter->setRenderHint(QPainter::Antialiasing);
  painter->setFont(font());
  const QRectF area = chart()->mapRectToScene(chart()->plotArea());
  // Drops from the critical points to the axis, and the threshold's name.
  for (const Tradeoff::Point& p : tradeoff_.points) {
    if (!p.critical) continue;
    const QPointF at = place(p);
    painter->setPen(QPen(run_colour(colour_of(p)), 1, Qt::DotLine));
    painter->drawLine(at, QPointF(at.x(), area.bottom()));
  }
  const double y = place(0, threshold_).y();
  painter->setPen(t.accent);
  const QString name = "F = " + percent_text(threshold_);
  painter->drawText(QPointF(area.left() + 6, y - 4), name);
  std::vector<QRectF> taken{
      QRectF(QPointF(area.left() + 6, y - 16), QSizeF(fontMetrics().horizontalAdvance(name), 16))};
  for (const Tradeoff::Point& p : tradeoff_.points) {
    taken.push_back(box(place(p), kMarker + 2));
  }
  for (QRectF& mark : taken) mark.adjust(-kBetween, 0, kBetween, 0);
  draw_labels(*painter, area, taken, lines(y, area));
  // From a point to where the best eviction retains as much.
  const auto reach = [&](const Tradeoff::Point& p) {
    if (!p.optimum) return;
    const QPointF least = place(*p.optimum, p.fidelity);
    painter->setPen(QPen(t.ink, 1.4, Qt::DotLine));
    painter->drawLine(place(p), least);
    painter->setPen(QPen(t.ink, 1.4));
    painter->drawLine(least - QPointF(0, kMarker / 2), least + QPointF(0, kMarker / 2));
  };
  const auto ring = [&](const Tradeoff::Point& p, const QColor& colour) {
    painter->setBrush(Qt::NoBrush);
    painter->setPen(QPen(colour, 1.6));
    painter->drawEllipse(place(p), kMarker * 0.85, kMarker * 0.85);
  };
  for (const Tradeoff::Point& p : tradeoff_.points) {
    if (static_cast<int>(p.run) != document_.current()) continue;
    ring(p, t.ink);
    if (cursor_ < 0) reach(p);
  }
  if (cursor_ >= 0) reach(tradeoff_.points[static_cast<std::size_t>(cursor_)]);
  if (cursor_ >= 0) ring(tradeoff_.points[static_cast<std::size_t>(cursor_)], t.accent);
  painter->restore();
}

void TradeoffPlot::mouseMoveEvent(QMouseEvent* event) { set_cursor(nearest(event->position())); }

void TradeoffPlot::leaveEvent(QEvent*) { set_cursor(-1); }

void TradeoffPlot::mousePressEvent(QMouseEvent* event) {
  setFocus();
  set_cursor(nearest(event->position()));
  choose();
}

void TradeoffPlot::keyPressEvent(QKeyEvent* event) {
  const int count = static_cast<int>(tradeoff_.points.size());
  const bool left = event->key() == Qt::Key_Left || event->key() == Qt::Key_Down;
  if (left || event->key() == Qt::Key_Right || event->key() == Qt::Key_Up) {
    if (count == 0) return;
    std::vector<int> order(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) order[static_cast<std::size_t>(i)] = i;
    const auto of = [&](int i) { return tradeoff_.points[static_cast<std::size_t>(i)]; };
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return std::pair(of(a).footprint, of(a).fidelity) <
             std::pair(of(b).footprint, of(b).fidelity);
    });
    int start = cursor_;
    for (int i = 0; i < count && start < 0; ++i) {
      if (static_cast<int>(of(i).run) == document_.current()) start = i;
    }
    const auto at = std::find(order.begin(), order.end(), start) - order.begin();
    const auto next = std::clamp<std::ptrdiff_t>(at + (left ? -1 : 1), 0, count - 1);
    set_cursor(order[static_cast<std::size_t>(next)]);
  } else if (event->key() == Qt::Key_Return || event->key() == Qt::Key_Enter ||
             event->key() == Qt::Key_Space) {
    choose();
  } else {
    event->ignore();
  }
}

void TradeoffPlot::choose() {
  if (cursor_ < 0) return;
  const auto run = tradeoff_.points[static_cast<std::size_t>(cursor_)].run;
  document_.set_current(static_cast<int>(run));
}

int TradeoffPlot::colour_of(const Tradeoff::Point& p) const {
  return tradeoff_.families[p.family].colour;
}

QPointF TradeoffPlot::place(double footprint, double fidelity) const {
  return chart()->mapToScene(
      chart()->mapToPosition(QPointF(100 * footprint, 100 * fidelity), chart()->series().front()));
}

QPointF TradeoffPlot::place(const Tradeoff::Point& p) const {
  return place(p.footprint, p.fidelity);
}

QRectF TradeoffPlot::box(const QPointF& centre, double size) {
  return {centre.x() - size / 2, centre.y() - size / 2, size, size};
}

int TradeoffPlot::nearest(const QPointF& at) const {
  int best = -1;
  double least = 14;
  for (std::size_t i = 0; i < tradeoff_.points.size(); ++i) {
    const double distance = QLineF(at, place(tradeoff_.points[i])).length();
    if (distance >= least) continue;
    least = distance;
    best = static_cast<int>(i);
  }
  return best;
}

QLineSeries* TradeoffPlot::add_line(const QPen& pen) {
  auto* series = new QLineSeries;
  series->setPen(pen);
  chart()->addSeries(series);
  series->attachAxis(x_);
  series->attachAxis(y_);
  return series;
}

void TradeoffPlot::draw_front(const std::vector<std::size_t>& front) {
  QColor colour = theme().faint;
  colour.setAlphaF(0.5F);
  auto* steps = add_line(QPen(colour, 5, Qt::SolidLine, Qt::RoundCap, Qt::MiterJoin));
  double height = 0;
  for (std::size_t i = 0; i < front.size(); ++i) {
    const Tradeoff::Point& p = tradeoff_.points[front[i]];
    if (i > 0) steps->append(100 * p.footprint, 100 * height);
    // What a score trace leaves open may lie lower than a point before it.
    height = std::max(height, p.fidelity);
    steps->append(100 * p.footprint, 100 * height);
  }
}

void TradeoffPlot::draw_frontier(const std::vector<std::pair<double, double>>& curve) {
  auto* line = add_line(QPen(theme().ink, 2));
  for (const auto& [footprint, retained] : curve) line->append(100 * footprint, 100 * retained);
}

void TradeoffPlot::draw_family(const Tradeoff::Family& family) {
  if (family.points.size() < 2) return;
  QColor colour = run_colour(colour_of(tradeoff_.points[family.points.front()]));
  auto* line = add_line(QPen(colour, 1, run_dash(8 * family.mark)));
  for (const std::size_t i : family.points) {
    line->append(100 * tradeoff_.points[i].footprint, 100 * tradeoff_.points[i].fidelity);
  }
}

void TradeoffPlot::draw_point(const Tradeoff::Point& p) {
  const QColor colour = run_colour(colour_of(p));
  if (p.most > p.fidelity) {  // an interval; the point is its lower end
    auto* interval = add_line(QPen(colour, 1.4));
    interval->append(100 * p.footprint, 100 * p.fidelity);
    interval->append(100 * p.footprint, 100 * p.most);
  }
  auto* series = new QScatterSeries;
  series->setMarkerSize(kMarker);
  series->setMarkerShape(shape_of(tradeoff_.families[p.family].mark));
  series->setColor(p.bound ? theme().paper : colour);
  series->setBorderColor(p.bound ? colour : theme().paper);
  series->setPen(QPen(p.bound ? colour : theme().paper, p.bound ? 1.8 : 0.8));
  series->append(100 * p.footprint, 100 * p.fidelity);
  chart()->addSeries(series);
  series->attachAxis(x_);
  series->attachAxis(y_);
}

std::vector<QLineF> TradeoffPlot::lines(double threshold_y, const QRectF& area) const {
  std::vector<QLineF> out{{area.left(), threshold_y, area.right(), threshold_y}};
  const auto at = [&](std::size_t i) { return place(tradeoff_.points[i]); };
  for (const Tradeoff::Family& family : tradeoff_.families) {
    for (std::size_t i = 1; i < family.points.size(); ++i) {
      out.emplace_back(at(family.points[i - 1]), at(family.points[i]));
    }
    if (family.critical) {
      out.emplace_back(at(*family.critical), QPointF(at(*family.critical).x(), area.bottom()));
    }
  }
  for (const auto& curve : tradeoff_.frontiers) {
    for (std::size_t i = 1; i < curve.size(); ++i) {
      out.emplace_back(place(curve[i - 1].first, curve[i - 1].second),
                       place(curve[i].first, curve[i].second));
    }
  }
  for (const Tradeoff::Point& p : tradeoff_.points) {
    if (p.most > p.fidelity) out.emplace_back(place(p), place(p.footprint, p.most));
  }
  for (const Tradeoff::Group& group : tradeoff_.groups) {
    for (std::size_t i = 1; i < group.front.size(); ++i) {
      const QPointF from = at(group.front[i - 1]);
      const QPointF to = at(group.front[i]);
      out.emplace_back(from, QPointF(to.x(), from.y()));
      out.emplace_back(QPointF(to.x(), from.y()), to);
    }
  }
  return out;
}

void TradeoffPlot::draw_labels(QPainter& painter, const QRectF& area, std::vector<QRectF>& taken,
                               const std::vector<QLineF>& drawn) const {
  const double high = fontMetrics().height();
  const auto covered = [&](const QRectF& label) {
    const QRectF letters = label.adjusted(0, 2, 0, -2);
    const bool on_line = std::any_of(drawn.begin(), drawn.end(),
                                     [&](const QLineF& line) { return crosses(line, letters); });
    return on_line ? kNoPlace : std::size_t{0};
  };
  // Where marks tell traces and chunk sizes, which the table names, a policy is named once.
  std::set<int> named;
  for (const Tradeoff::Family& family : tradeoff_.families) {
    if (tradeoff_.marks > 1 && !named.insert(family.colour).second) continue;
    const QString text = QString::fromStdString(tradeoff_.marks > 1 ? family.method : family.name);
    const QSizeF size(fontMetrics().horizontalAdvance(text), high);
    // The last point is where a family's line ends; it is the clearest place.
    for (auto i = family.points.rbegin(); i != family.points.rend(); ++i) {
      const Tradeoff::Point& p = tradeoff_.points[*i];
      const auto label = free_place(places_beside(place(p), size, kGap), area, taken, covered);
      if (!label) continue;
      taken.push_back(label->adjusted(-kBetween, 0, kBetween, 0));
      painter.setPen(run_colour(colour_of(p)));
      lead_to(painter, place(p), *label, kGap);
      painter.drawText(*label, Qt::AlignCenter | Qt::TextDontClip, text);
      break;
    }
  }
}

}  // namespace kvspan::gui
