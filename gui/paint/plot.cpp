// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/plot.h"

#include <QCategoryAxis>
#include <QChart>
#include <QLogValueAxis>
#include <QValueAxis>
#include <algorithm>
#include <cmath>
#include <limits>

#include "sim/base/text.h"
#include "sim/report/axes.h"

namespace kvspan::gui {

namespace {

constexpr int kStill = 150;  // ms without a change until lines are smoothed

// What an axis counts in.
struct Unit {
  double size = 1;
  QString title;
};

Unit unit_of(Quantity quantity, double most) {
  switch (quantity) {
    case Quantity::bytes: {
      const ByteUnit unit = byte_unit(most);
      const auto name = QString::fromUtf8(unit.name.data(), static_cast<int>(unit.name.size()));
      return {unit.bytes, QString("Memory (%1)").arg(name)};
    }
    case Quantity::entries:
      if (most >= 1e6) return {1e6, "Entries (millions)"};
      if (most >= 1e4) return {1e3, "Entries (thousands)"};
      return {1, "Entries"};
    case Quantity::percent:
      return {0.01, "Entries (% of a full cache)"};
    case Quantity::mass:
      break;
  }
  return {0.01, "Retained attention (%)"};
}

}  // namespace

Plot::Plot(Document& document, bool paper, QWidget* parent)
    : QChartView(parent), document_(document), paper_(paper) {
  x_axis_ = new QCategoryAxis;
  y_axis_ = new QValueAxis;
  log_axis_ = new QLogValueAxis;
  chart()->addAxis(x_axis_, Qt::AlignBottom);
  chart()->addAxis(y_axis_, Qt::AlignLeft);
  chart()->addAxis(log_axis_, Qt::AlignLeft);
  chart()->legend()->hide();
  chart()->setBackgroundRoundness(0);
  chart()->setMargins({});
  x_axis_->setLabelsPosition(QCategoryAxis::AxisLabelsPositionOnValue);
  x_axis_->setTitleText("Row");
  y_axis_->setTickType(QValueAxis::TicksDynamic);
  back_ = new PlotLayer(chart(), 1, [this](QPainter& p) { paint_back(p); });
  middle_ = new PlotLayer(chart(), 20, [this](QPainter& p) { paint_lines(p); });
  front_ = new PlotLayer(chart(), 30, [this](QPainter& p) { paint_front(p); });
  setFrameShape(QFrame::NoFrame);
  setRubberBand(QChartView::NoRubberBand);
  setHorizontalScrollBarPolicy(Qt::ScrollBarAlwaysOff);
  setVerticalScrollBarPolicy(Qt::ScrollBarAlwaysOff);
  setContextMenuPolicy(Qt::NoContextMenu);
  apply_theme();
  if (paper_) return;
  middle_->setCacheMode(QGraphicsItem::DeviceCoordinateCache);
  setFocusPolicy(Qt::StrongFocus);
  setMouseTracking(true);
  setAccessibleName("Chart over rows");
  setMinimumSize(240, 120);
  still_.setSingleShot(true);
  still_.setInterval(kStill);
  connect(&still_, &QTimer::timeout, this, [this] { resample(); });
  connect(&document_, &Document::zoom_changed, this, [this] { zoom_changed(); });
  connect(&document_, &Document::selection_changed, this, [this] { front_->update(); });
}

void Plot::apply_theme() {
  const Theme& t = theme();
  chart()->setBackgroundBrush(t.paper);
  chart()->setBackgroundPen(Qt::NoPen);
  setBackgroundBrush(t.paper);
  const QFont small = small_font(font());
  for (QAbstractAxis* axis :
       {static_cast<QAbstractAxis*>(x_axis_), static_cast<QAbstractAxis*>(y_axis_),
        static_cast<QAbstractAxis*>(log_axis_)}) {
    axis->setLabelsFont(small);
    axis->setTitleFont(small);
    axis->setLabelsColor(t.ink);
    axis->setTitleBrush(t.ink);
    axis->setLinePen(QPen(t.faint, 1));
    axis->setGridLinePen(QPen(t.grid, 1));
    QColor faint = t.grid;
    faint.setAlphaF(0.5F);
    axis->setMinorGridLinePen(QPen(faint, 1));
  }
  x_axis_->setGridLineVisible(false);
  middle_->update();
  front_->update();
  back_->update();
}

void Plot::set_content(ChartContent content) {
  content_ = std::move(content);
  zoom_ = document_.zoom();
  find_peaks();
  place();
}

void Plot::lay_out(const QSize& size) {
  resize(size);
  setSceneRect(QRectF(QPointF(), size));
  chart()->resize(size);
  place();
}

void Plot::resizeEvent(QResizeEvent* event) {
  QChartView::resizeEvent(event);
  place();
}

// The plot area is where it is, whatever labels say: nothing jumps while the axis changes.
void Plot::place() {
  const QFontMetricsF metrics(small_font(font()));
  const double left = metrics.horizontalAdvance("000000") + 2 * metrics.height();
  const double bottom = 2.9 * metrics.height();
  // Above it, half of the highest label has room.
  const double top = (paper_ && !content_.title.isEmpty() ? 2.2 : 1.5) * metrics.height();
  const QRectF inside = QRectF(QPointF(), chart()->size()).adjusted(left, top, -14, -bottom);
  area_ = inside.adjusted(0, 0, 0, paper_ ? -legend_height() : 0);
  if (area_.width() < 8 || area_.height() < 8) area_ = QRectF(left, top, 8, 8);
  chart()->setPlotArea(area_);
  // Lines at the edge are not cut in half, and legends of pictures are beyond the plot.
  const QRectF whole(QPointF(), chart()->size());
  middle_->set_area(whole);
  back_->set_area(area_);
  front_->set_area(whole);
  resample();
}

void Plot::zoom_changed() {
  zoom_ = document_.zoom();
  still_.start();
  resample();
}

// ---- Sampling -----------------------------------------------------------------------------------

void Plot::find_peaks() {
  peaks_.clear();
  for (const ChartLine& line : content_.lines) {
    Peak peak;
    if (content_.quantity != Quantity::mass && !content_.difference) {
      const Series& series = *line.measure.series;
      peak.row = content_.quantity == Quantity::bytes ? peak_row(shown(line))
                                                      : series.row_of_high(0, series.rows());
      peak.value = peak.said = line.measure.at(peak.row);
      const auto total = figure(shown(line).run(), "peak_bytes.total");
      if (content_.quantity == Quantity::bytes && total) peak.said = *total;
    }
    peaks_.push_back(peak);
  }
}

void Plot::resample() {
  lines_.clear();
  stack_ = {};
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  double least = low;  // positive
  const auto see = [&](double value) {
    low = std::min(low, value);
    high = std::max(high, value);
    if (value > 0) least = std::min(least, value);
  };
  if (!zoom_.empty()) {
    const Columns columns(zoom_, std::max(1, static_cast<int>(area_.width())));
    for (const ChartLine& line : content_.lines) {
      lines_.push_back(sample_line(line.measure, columns));
      for (const QPointF& point : lines_.back()) see(point.y());
    }
    if (content_.stacking) {
      // Fewer columns while it moves: a part is a sum over many heads.
      const Columns coarse(zoom_,
                           std::max(1, static_cast<int>(area_.width()) / (moving() ? 6 : 1)));
      stack_ = sample_stack(*content_.stacking, content_.lines.back().measure, coarse);
      if (!stack_.tops.empty()) {
        for (const double top : stack_.tops.back()) see(top);
      }
    }
  }
  log_ = content_.log && !content_.difference && std::isfinite(least);
  if (!std::isfinite(low)) low = high = 0;
  low_ = log_ ? std::max(least, high * 1e-7) : std::min(low, 0.0);
  high_ = content_.difference ? std::max(high, 0.0) : high;
  set_axes();
  if (log_) {
    for (auto& line : lines_) {
      for (QPointF& point : line) point.setY(on_axis(point.y()));
    }
  }
  back_->update();
  middle_->update();
  front_->update();
}

// Ends of the axis on half ticks around what is shown.
void Plot::set_axes() {
  const double typical = log_ ? std::sqrt(low_ * high_) : std::max(std::abs(low_), std::abs(high_));
  const Unit unit = unit_of(content_.quantity, typical);
  QString title = content_.difference
                      ? "Difference: " + unit.title.left(1).toLower() + unit.title.mid(1)
                      : unit.title;
  const auto is_lower_bound = [this](const ChartLine& line) {
    return line.run >= 0 &&
           retained_mass_upper(document_.runs()[static_cast<std::size_t>(line.run)].run());
  };
  if (content_.quantity == Quantity::mass && !content_.difference &&
      std::any_of(content_.lines.begin(), content_.lines.end(), is_lower_bound))
    title += ", at least (a score trace)";
  const auto most = std::clamp(static_cast<int>(area_.height() / 32), 2, 9);
  if (log_) {
    double low = low_ / unit.size;
    double high = high_ / unit.size;
    const bool twos = high / low <= 512;
    const double base = twos ? 2 : 10;
    const auto whole = [&](double value, double (*round)(double)) {
      return std::pow(base, round(std::log(value) / std::log(base)));
    };
    // Two powers of two at least; powers of ten are many.
    low = twos ? whole(low, [](double v) { return std::floor(v + 1e-9); }) : low / 1.2;
    high = twos ? std::max(whole(high, [](double v) { return std::ceil(v - 1e-9); }), low * base)
                : high * 1.2;
    log_axis_->setBase(base);
    log_axis_->setMinorTickCount(twos ? 0 : 8);
    log_axis_->setRange(low, high);
    log_axis_->setLabelFormat("%.5g");
    log_axis_->setTitleText(title);
    low_ = low * unit.size;
    high_ = high * unit.size;
  } else {
    const bool share =
        content_.quantity == Quantity::percent || content_.quantity == Quantity::mass;
    if (!(high_ > low_)) high_ = low_ + (share ? 1 : std::max(unit.size, 1.0));
    const double room = 1.04;  // above the highest line
    const double low = room * low_ / unit.size;
    const double high = (share && high_ > 0.96 && high_ <= 1 ? 1 : room) * high_ / unit.size;
    const std::vector<Tick> marks = ticks(low, high, most);
    const double step = marks.size() > 1 ? marks[1].value - marks[0].value : high - low;
    const double half = step / 2;
    low_ = std::floor(low / half + 1e-9) * half * unit.size;
    high_ = std::ceil(high / half - 1e-9) * half * unit.size;
    const int decimals = std::max(0, static_cast<int>(std::ceil(-std::log10(step) - 1e-9)));
    y_axis_->setLabelFormat(QString("%.%1f").arg(decimals));
    y_axis_->setTickAnchor(0);
    y_axis_->setTickInterval(step);
    y_axis_->setRange(low_ / unit.size, high_ / unit.size);
    y_axis_->setTitleText(title);
  }
  axis_low_ = on_axis(low_);
  pixels_per_unit_ = area_.height() / (on_axis(high_) - axis_low_);
  y_axis_->setVisible(!log_ && content_.message.isEmpty());
  log_axis_->setVisible(log_ && content_.message.isEmpty());
  set_x_ticks();
}

void Plot::set_x_ticks() {
  x_axis_->setVisible(!zoom_.empty());
  if (zoom_.empty()) return;
  // A tick is in the middle of its row.
  const auto begin = static_cast<double>(zoom_.begin);
  const auto end = static_cast<double>(zoom_.end);
  const QFontMetricsF metrics(small_font(font()));
  const double width = metrics.horizontalAdvance(count_text(zoom_.end)) + 28;
  const auto most = std::max(2, static_cast<int>(area_.width() / width));
  std::vector<double> marks;
  for (const Tick& tick : ticks(begin, end - 1, most)) {
    if (tick.value == std::floor(tick.value)) marks.push_back(tick.value);
  }
  if (marks.empty()) marks.push_back(begin);
  for (const QString& label : x_axis_->categoriesLabels()) x_axis_->remove(label);
  x_axis_->setStartValue(begin - end);
  x_axis_->setRange(begin, end);
  for (const double row : marks) x_axis_->append(count_text(std::llround(row)), row + 0.5);
}

RowIndex Plot::row_at(double x) const {
  const auto row = static_cast<RowIndex>(std::floor((x - area_.left()) / pixels_per_row()));
  return zoom_.begin + std::clamp<RowIndex>(row, 0, std::max<RowIndex>(zoom_.size() - 1, 0));
}

QPen Plot::pen_of(const ChartLine& line) const {
  const double width = content_.stacking || content_.difference ? 1.2 : line.current ? 2.6 : 1.5;
  return pen_of(line, width);
}

}  // namespace kvspan::gui
