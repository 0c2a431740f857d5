// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/time_chart.h"

#include <QApplication>
#include <QEvent>
#include <QGraphicsScene>
#include <QVBoxLayout>
#include <utility>

#include "gui/paint/minimap.h"
#include "gui/paint/plot.h"

namespace kvspan::gui {

TimeChart::TimeChart(Document& document, QWidget* parent)
    : QWidget(parent),
      document_(document),
      plot_(new Plot(document, false, this)),
      minimap_(new Minimap(document, *plot_, this)) {
  auto* layout = new QVBoxLayout(this);
  layout->setContentsMargins(0, 0, 0, 0);
  layout->setSpacing(0);
  layout->addWidget(plot_, 1);
  layout->addWidget(minimap_);
  setFocusProxy(plot_);
}

TimeChart::~TimeChart() = default;

void TimeChart::set_content(ChartContent content) {
  plot_->set_content(std::move(content));
  minimap_->content_changed();
}

void TimeChart::draw(QPainter& painter, const QSize& size) const {
  Plot plot(document_, true, nullptr);
  plot.set_content(plot_->content());
  plot.lay_out(size);
  // Axes are laid out by events that have no loop to come from here.
  QCoreApplication::sendPostedEvents(nullptr, QEvent::LayoutRequest);
  plot.scene()->render(&painter, QRectF(QPointF(), size), QRectF(QPointF(), size));
}

QString TimeChart::hovered_text() const { return plot_->hovered_text(); }

QWidget* TimeChart::canvas() const { return plot_->viewport(); }
QRectF TimeChart::plot_area() const { return plot_->area(); }
double TimeChart::x_of(double row) const { return plot_->x_of(row); }
bool TimeChart::moving() const { return plot_->moving(); }

std::size_t TimeChart::points(std::size_t i) const { return plot_->lines()[i].size(); }

void TimeChart::changeEvent(QEvent* event) {
  if (event->type() == QEvent::PaletteChange || event->type() == QEvent::FontChange) {
    plot_->apply_theme();
    minimap_->content_changed();
  }
  QWidget::changeEvent(event);
}

}  // namespace kvspan::gui
