// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/time_chart.h"

#include <QApplication>
#include <QCategoryAxis>
#include <QChart>
#include <QChartView>
#include <QEvent>
#include <QGraphicsItem>
#include <QKeyEvent>
#include <QLogValueAxis>
#include <QMouseEvent>
#include <QPainter>
#include <QPainterPath>
#include <QTimer>
#include <QVBoxLayout>
#include <QValueAxis>
#include <QWheelEvent>
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "gui/paint/theme.h"
#include "sim/report/terminal_chart.h"

namespace kvspan::gui {

namespace {

constexpr int kStill = 150;  // ms without a change until lines are smoothed
constexpr int kSlop = 4;     // pixels that a click may move
constexpr int kNear = 7;     // pixels to a line that is meant
constexpr double kPassGap = 6;
constexpr std::size_t kReadout = 8;  // lines of a readout

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

QFont small_font(const QFont& base) {
  QFont font = base;
  font.setPointSizeF(std::max(7.0, base.pointSizeF() * 0.88));
  return font;
}

// Text that stays readable on lines.
void draw_haloed(QPainter& painter, const QPointF& at, const QString& text, const QColor& colour,
                 double halo) {
  QPainterPath letters;
  letters.addText(at, painter.font(), text);
  painter.strokePath(letters,
                     QPen(theme().paper, 2 * halo, Qt::SolidLine, Qt::RoundCap, Qt::RoundJoin));
  painter.setPen(colour);
  painter.drawText(at, text);
}

// Text in a framed box beside a point, inside `area`.
struct BoxLine {
  QString text, value;
  QPen mark = Qt::NoPen;
};
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

// A polyline, as the painter is fastest at it: a path of many spans up and down, smooth and wide,
// takes a hundred times as long as one of a pixel's width; single segments, ten times.
enum class Care { fast, smooth, paper };
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

// An item over the plot area, painted by a function.
class Layer final : public QGraphicsItem {
 public:
  Layer(QGraphicsItem* parent, double z, std::function<void(QPainter&)> paint)
      : QGraphicsItem(parent), paint_(std::move(paint)) {
    setZValue(z);
    setAcceptedMouseButtons(Qt::NoButton);
  }
  void set_area(const QRectF& area) {
    if (area == area_) return;
    prepareGeometryChange();
    area_ = area;
  }
  [[nodiscard]] QRectF boundingRect() const override { return area_; }
  void paint(QPainter* painter, const QStyleOptionGraphicsItem* /*option*/,
             QWidget* /*widget*/) override {
    paint_(*painter);
  }

 private:
  QRectF area_;
  std::function<void(QPainter&)> paint_;
};

}  // namespace

// ---- Plot ---------------------------------------------------------------------------------------

class TimeChart::Plot final : public QChartView {
 public:
  // paper: a picture, smooth at once and with a legend.
  Plot(Document& document, bool paper, QWidget* parent);
  void set_content(ChartContent content);
  [[nodiscard]] const ChartContent& content() const { return content_; }
  [[nodiscard]] const std::vector<std::vector<QPointF>>& lines() const { return lines_; }
  [[nodiscard]] bool moving() const { return still_.isActive(); }
  [[nodiscard]] QRectF area() const { return area_; }
  [[nodiscard]] double x_of(double row) const {
    return area_.left() + (row - static_cast<double>(zoom_.begin)) * pixels_per_row();
  }
  void apply_theme();
  void resample();
  // For a picture: the size is laid out without waiting for events.
  void lay_out(const QSize& size);

 protected:
  void resizeEvent(QResizeEvent* event) override;
  void mousePressEvent(QMouseEvent* event) override;
  void mouseMoveEvent(QMouseEvent* event) override;
  void mouseReleaseEvent(QMouseEvent* event) override;
  void mouseDoubleClickEvent(QMouseEvent* event) override;
  void wheelEvent(QWheelEvent* event) override;
  void keyPressEvent(QKeyEvent* event) override;
  void leaveEvent(QEvent* event) override;

 private:
  [[nodiscard]] double pixels_per_row() const {
    return area_.width() / static_cast<double>(std::max<RowIndex>(zoom_.size(), 1));
  }
  [[nodiscard]] RowIndex row_at(double x) const;
  [[nodiscard]] double on_axis(double value) const {
    return log_ ? std::log(std::max(value, low_)) : value;
  }
  [[nodiscard]] double y_at(double on_axis) const {
    return area_.bottom() - (on_axis - axis_low_) * pixels_per_unit_;
  }
  [[nodiscard]] double y_of(double value) const { return y_at(on_axis(value)); }
  [[nodiscard]] const ShownRun& shown(const ChartLine& line) const {
    return document_.runs()[static_cast<std::size_t>(line.run)];
  }
  [[nodiscard]] QPen pen_of(const ChartLine& line) const;
  [[nodiscard]] QString text_of(double value) const {
    return content_.difference ? difference_text(content_.quantity, value)
                               : value_text(content_.quantity, value);
  }
  // Where the trace of the current run ends.
  [[nodiscard]] double end_of_current() const {
    const RowIndex tokens = document_.current_run()->result->trace.tokens;
    return std::clamp(x_of(static_cast<double>(tokens)), area_.left(), area_.right());
  }
  [[nodiscard]] QString decode_caption() const;
  [[nodiscard]] QColor colour_of_part(int part) const {
    const Stacking& stacking = *content_.stacking;
    return part_colour(stacking.places()[static_cast<std::size_t>(part)], stacking.all_places());
  }
  // True if something of it is drawn.
  [[nodiscard]] bool occurs(std::size_t part) const {
    const std::vector<double>& top = stack_.tops[part];
    return part == 0 ? std::any_of(top.begin(), top.end(), [](double value) { return value > 0; })
                     : top != stack_.tops[part - 1];
  }
  void place();
  void set_axes();
  void set_x_ticks();
  void zoom_changed();
  void moved();
  void find_peaks();

  void paint_back(QPainter& painter);
  void paint_lines(QPainter& painter);
  void paint_stack(QPainter& painter);
  void paint_difference(QPainter& painter);
  void paint_peaks(QPainter& painter);
  // Of all lines, those that are drawn in `box`.
  [[nodiscard]] std::size_t points_in(const QRectF& box) const;
  void paint_stack_legend(QPainter& painter);
  void paint_front(QPainter& painter);
  void paint_legend(QPainter& painter);
  [[nodiscard]] int legend_height() const;
  [[nodiscard]] std::vector<BoxLine> readout(RowIndex row) const;
  [[nodiscard]] std::vector<BoxLine> rubber_readout() const;

  void zoom_by(double factor, double anchor);
  void pan(RowIndex rows) {
    const Rows zoom = document_.zoom();
    document_.set_zoom({zoom.begin + rows, zoom.end + rows});
  }
  void select(Rows rows);
  void choose_line(const QPointF& at);
  void next_line(int step);

  Document& document_;
  bool paper_;
  ChartContent content_;
  Rows zoom_;
  QRectF area_;
  double low_ = 0, high_ = 1;                  // of the values' axis
  bool log_ = false;                           // as drawn: content_.log, and something is positive
  double axis_low_ = 0, pixels_per_unit_ = 1;  // of logarithms, if log_
  std::vector<std::vector<QPointF>> lines_;    // [line][point] (row, value on the axis)
  SampledStack stack_;
  struct Peak {
    RowIndex row = -1;  // -1: none
    double value = 0;   // of the line
    double said = 0;    // by the result, which may count what lasts less than a row
  };
  std::vector<Peak> peaks_;  // [line]
  std::vector<QRectF> captions_;

  QCategoryAxis* x_axis_;
  QValueAxis* y_axis_;
  QLogValueAxis* log_axis_;
  Layer *back_, *middle_, *front_;
  QTimer still_;

  std::optional<QPointF> hover_;
  enum class Drag { none, select, pan };
  Drag drag_ = Drag::none;
  QPointF pressed_;
  Rows zoom_pressed_, selection_before_;
  std::optional<Rows> rubber_;
  double wheel_ = 0;  // what has not yet moved a row
};

TimeChart::Plot::Plot(Document& document, bool paper, QWidget* parent)
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
  back_ = new Layer(chart(), 1, [this](QPainter& p) { paint_back(p); });
  middle_ = new Layer(chart(), 20, [this](QPainter& p) { paint_lines(p); });
  front_ = new Layer(chart(), 30, [this](QPainter& p) { paint_front(p); });
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

void TimeChart::Plot::apply_theme() {
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

void TimeChart::Plot::set_content(ChartContent content) {
  content_ = std::move(content);
  zoom_ = document_.zoom();
  find_peaks();
  place();
}

void TimeChart::Plot::lay_out(const QSize& size) {
  resize(size);
  setSceneRect(QRectF(QPointF(), size));
  chart()->resize(size);
  place();
}

void TimeChart::Plot::resizeEvent(QResizeEvent* event) {
  QChartView::resizeEvent(event);
  place();
}

// The plot area is where it is, whatever labels say: nothing jumps while the axis changes.
void TimeChart::Plot::place() {
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

void TimeChart::Plot::zoom_changed() {
  zoom_ = document_.zoom();
  still_.start();
  resample();
}

// ---- Sampling -----------------------------------------------------------------------------------

void TimeChart::Plot::find_peaks() {
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

void TimeChart::Plot::resample() {
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
void TimeChart::Plot::set_axes() {
  const double typical = log_ ? std::sqrt(low_ * high_) : std::max(std::abs(low_), std::abs(high_));
  const Unit unit = unit_of(content_.quantity, typical);
  const QString title = content_.difference
                            ? "Difference: " + unit.title.left(1).toLower() + unit.title.mid(1)
                            : unit.title;
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

void TimeChart::Plot::set_x_ticks() {
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

RowIndex TimeChart::Plot::row_at(double x) const {
  const auto row = static_cast<RowIndex>(std::floor((x - area_.left()) / pixels_per_row()));
  return zoom_.begin + std::clamp<RowIndex>(row, 0, std::max<RowIndex>(zoom_.size() - 1, 0));
}

QPen TimeChart::Plot::pen_of(const ChartLine& line) const {
  const double width = content_.stacking || content_.difference ? 1.2 : line.current ? 2.6 : 1.5;
  return run_pen(shown(line).colour, width);
}

// ---- Painting -----------------------------------------------------------------------------------

// Behind the grid: phases and passes of the current run.
void TimeChart::Plot::paint_back(QPainter& painter) {
  const ShownRun* current = document_.current_run();
  captions_.clear();
  if (current == nullptr || !content_.message.isEmpty()) return;
  const Theme& t = theme();
  const RowIndex prompt = current->result->trace.prompt;
  const double border = std::clamp(x_of(static_cast<double>(prompt)), area_.left(), area_.right());
  painter.fillRect(QRectF(QPointF(border, area_.top()),
                          QPointF(std::max(border, end_of_current()), area_.bottom())),
                   t.panel);
  painter.setPen(QPen(t.faint, 1, Qt::DotLine));
  for (const RowIndex end :
       pass_ends(*current->result, zoom_.begin, zoom_.end, kPassGap / pixels_per_row())) {
    const double x = std::round(x_of(static_cast<double>(end))) + 0.5;
    painter.drawLine(QPointF(x, area_.top()), QPointF(x, area_.bottom()));
  }
}

void TimeChart::Plot::paint_lines(QPainter& painter) {
  const Theme& t = theme();
  const bool smooth = paper_ || !still_.isActive();
  painter.setFont(small_font(font()));
  if (!content_.message.isEmpty()) {
    painter.setPen(t.faint);
    painter.drawText(area_, Qt::AlignCenter | Qt::TextWordWrap, content_.message);
    return;
  }
  painter.save();
  painter.setClipRect(area_.adjusted(0, -3, 0, 2));
  painter.setRenderHint(QPainter::Antialiasing, smooth);
  if (content_.stacking) paint_stack(painter);
  if (content_.difference) paint_difference(painter);
  for (std::size_t i = 0; i < lines_.size(); ++i) {
    QPolygonF polygon;
    polygon.reserve(static_cast<qsizetype>(lines_[i].size()));
    for (const QPointF& point : lines_[i]) polygon << QPointF(x_of(point.x()), y_at(point.y()));
    paint_line(painter, polygon, pen_of(content_.lines[i]),
               paper_   ? Care::paper
               : smooth ? Care::smooth
                        : Care::fast);
  }
  painter.restore();
  painter.setRenderHint(QPainter::Antialiasing, true);
  // Captions of the phases at their border.
  captions_.clear();
  if (const ShownRun* current = document_.current_run()) {
    const QFontMetricsF metrics(painter.font());
    const double border = x_of(static_cast<double>(current->result->trace.prompt));
    const double base = area_.top() + metrics.ascent() + 2;
    const auto caption = [&](const QString& text, double x, double from, double to) {
      const double width = metrics.horizontalAdvance(text);
      if (to - from < width + 10) return;
      const QRectF box(std::clamp(x, from + 5, to - width - 5), area_.top() + 2, width,
                       metrics.height());
      draw_haloed(painter, {box.left(), base}, text, t.faint, 1);
      captions_.push_back(box.adjusted(-3, -2, 3, 2));
    };
    caption("prefill", border - metrics.horizontalAdvance("prefill") - 6, area_.left(),
            std::min(border, area_.right()));
    caption(decode_caption(), border + 6, std::max(border, area_.left()), end_of_current());
  }
  if (content_.stacking) paint_stack_legend(painter);
  paint_peaks(painter);
  if (paper_) paint_legend(painter);
}

// Phases are the current run's; if others have another prompt, the caption says so.
QString TimeChart::Plot::decode_caption() const {
  const ShownRun& current = *document_.current_run();
  const bool same =
      std::all_of(content_.lines.begin(), content_.lines.end(), [&](const ChartLine& line) {
        return shown(line).result->trace.prompt == current.result->trace.prompt;
      });
  return same ? QString("decode")
              : "decode of " + run_names(document_)[static_cast<std::size_t>(document_.current())];
}

void TimeChart::Plot::paint_stack(QPainter& painter) {
  const int parts = static_cast<int>(stack_.tops.size());
  painter.setPen(Qt::NoPen);
  QPolygonF polygon;
  for (int p = 0; p < parts; ++p) {
    const auto& tops = stack_.tops[static_cast<std::size_t>(p)];
    polygon.clear();
    for (std::size_t i = 0; i < stack_.x.size(); ++i) {
      polygon << QPointF(x_of(stack_.x[i]), y_of(tops[i]));
    }
    for (std::size_t i = stack_.x.size(); i-- > 0;) {
      const double below = p == 0 ? 0 : stack_.tops[static_cast<std::size_t>(p - 1)][i];
      polygon << QPointF(x_of(stack_.x[i]), y_of(below));
    }
    painter.setBrush(colour_of_part(p));
    painter.drawPolygon(polygon);
  }
}

void TimeChart::Plot::paint_difference(QPainter& painter) {
  const double zero = y_of(0);
  for (const bool more : {true, false}) {
    painter.save();
    const QRectF half = more ? QRectF(area_.topLeft(), QPointF(area_.right(), zero))
                             : QRectF(QPointF(area_.left(), zero), area_.bottomRight());
    painter.setClipRect(half, Qt::IntersectClip);
    QColor fill = more ? theme().bad : theme().good;
    fill.setAlphaF(0.45F);
    painter.setPen(Qt::NoPen);
    painter.setBrush(fill);
    for (const auto& line : lines_) {
      if (line.empty()) continue;
      QPolygonF polygon;
      polygon << QPointF(x_of(line.front().x()), zero);
      for (const QPointF& point : line) polygon << QPointF(x_of(point.x()), y_of(point.y()));
      polygon << QPointF(x_of(line.back().x()), zero);
      painter.drawPolygon(polygon);
    }
    painter.restore();
  }
  painter.setPen(QPen(theme().ink, 1));
  painter.drawLine(QPointF(area_.left(), zero), QPointF(area_.right(), zero));
}

// Dots, and values where they have room: the current run's first, then from the largest.
void TimeChart::Plot::paint_peaks(QPainter& painter) {
  constexpr double kDot = 3;
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < peaks_.size(); ++i) {
    if (zoom_.begin <= peaks_[i].row && peaks_[i].row < zoom_.end) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const auto key = [&](std::size_t i) {
      return std::pair(content_.lines[i].current, peaks_[i].value);
    };
    return key(a) > key(b);
  });
  const QFontMetricsF metrics(painter.font());
  std::vector<QRectF> taken = captions_;
  const auto place_of = [&](std::size_t i) {
    return QPointF(x_of(static_cast<double>(peaks_[i].row) + 0.5), y_of(peaks_[i].value));
  };
  for (const std::size_t i : order) {
    const QPointF at = place_of(i);
    taken.emplace_back(at - QPointF(kDot, kDot), QSizeF(2 * kDot, 2 * kDot));
  }
  const std::size_t own = captions_.size();
  double largest = 0;
  for (const std::size_t i : order) largest = std::max(largest, peaks_[i].value);
  std::vector<std::pair<QString, QPointF>> written;
  for (std::size_t k = 0; k < order.size(); ++k) {
    const std::size_t i = order[k];
    const QPointF at = place_of(i);
    const QColor colour = run_colour(shown(content_.lines[i]).colour);
    const QString text = text_of(peaks_[i].said);
    const auto same = [&](const auto& one) {
      return one.first == text && QLineF(one.second, at).length() < 24;
    };
    if (std::any_of(written.begin(), written.end(), same)) continue;
    const QSizeF size(metrics.horizontalAdvance(text), metrics.ascent());
    const double w = size.width();
    const double h = size.height();
    const std::array corners{QPointF(-w / 2, -h - 6), QPointF(-w - 4, -h - 5),
                             QPointF(4, -h - 5),      QPointF(-w - 7, -h / 2),
                             QPointF(7, -h / 2),      QPointF(-w / 2, 6),
                             QPointF(-w - 4, 5),      QPointF(4, 5)};
    // Where it is on no other label, and on as little of lines as can be.
    std::optional<QRectF> drawn;
    std::size_t least = std::numeric_limits<std::size_t>::max();
    for (const QPointF& corner : corners) {
      const QRectF box(at + corner, size);
      bool free = area_.adjusted(1, -4, -1, 0).contains(box);
      for (std::size_t b = 0; b < taken.size() && free; ++b) {
        free = b == own + k || !taken[b].intersects(box);
      }
      if (!free) continue;
      const std::size_t under = points_in(box);
      if (under >= least) continue;
      least = under;
      drawn = box;
    }
    // The current run's and the largest are never left out.
    if (!drawn && (content_.lines[i].current || peaks_[i].value >= largest)) {
      drawn = QRectF({std::max(area_.left(), std::min(at.x() - w / 2, area_.right() - w)),
                      std::max(area_.top(), at.y() - h - 6)},
                     size);
    }
    if (!drawn) continue;
    taken.push_back(drawn->adjusted(-4, -3, 4, 3));
    draw_haloed(painter, {drawn->left(), drawn->bottom() - 1}, text, colour, 3);
    written.emplace_back(text, at);
  }
  painter.setPen(QPen(theme().paper, 1));
  for (const std::size_t i : order) {
    painter.setBrush(run_colour(shown(content_.lines[i]).colour));
    painter.drawEllipse(place_of(i), kDot + 0.5, kDot + 0.5);
  }
}

std::size_t TimeChart::Plot::points_in(const QRectF& box) const {
  std::size_t found = 0;
  const auto row_of = [&](double x) {
    return (x - area_.left()) / pixels_per_row() + static_cast<double>(zoom_.begin);
  };
  for (const std::vector<QPointF>& line : lines_) {
    auto point = std::lower_bound(line.begin(), line.end(), row_of(box.left()),
                                  [](const QPointF& p, double x) { return p.x() < x; });
    for (; point != line.end() && x_of(point->x()) <= box.right(); ++point) {
      const double y = y_at(point->y());
      found += box.top() <= y && y <= box.bottom() ? 1 : 0;
    }
  }
  return found;
}

// Parts that are drawn, from the top to the bottom, as they lie; of many, a few that are evenly
// spread.
void TimeChart::Plot::paint_stack_legend(QPainter& painter) {
  const std::vector<QString>& names = content_.stacking->names();
  std::vector<int> drawn;
  for (std::size_t part = 0; part < stack_.tops.size(); ++part) {
    if (occurs(part)) drawn.push_back(static_cast<int>(part));
  }
  const auto count = static_cast<int>(drawn.size());
  const QFontMetricsF metrics(painter.font());
  const double step = metrics.lineSpacing();
  const int room = std::max(2, static_cast<int>((area_.height() * 0.8) / step) - 2);
  const int listed = std::min(count, std::min(room, 12));
  std::vector<int> parts;
  for (int k = 0; k < listed; ++k) {
    parts.push_back(
        drawn[static_cast<std::size_t>(listed == 1 ? 0 : (count - 1) * k / (listed - 1))]);
  }
  std::vector<QString> notes{
      run_names(document_)[static_cast<std::size_t>(content_.lines.back().run)]};
  if (!content_.stacking->note().isEmpty()) notes.push_back(content_.stacking->note());
  double width = 0;
  for (const int part : parts) {
    width = std::max(width, 18 + metrics.horizontalAdvance(names[static_cast<std::size_t>(part)]));
  }
  for (const QString& note : notes) width = std::max(width, metrics.horizontalAdvance(note));
  const auto rows = static_cast<double>(parts.size() + notes.size());
  QRectF box(area_.left() + 10, area_.top() + 6 + step, width + 14, rows * step + 10);
  // Not where the stack is highest.
  if (x_of(static_cast<double>(peaks_.back().row)) < area_.center().x()) {
    box.moveRight(area_.right() - 10);
  }
  QColor paper = theme().paper;
  paper.setAlphaF(0.94F);
  painter.setPen(QPen(theme().grid, 1));
  painter.setBrush(paper);
  painter.drawRoundedRect(box, 3, 3);
  captions_.push_back(box);
  double y = box.top() + 5;
  painter.setPen(theme().ink);
  painter.drawText(QPointF(box.left() + 7, y + metrics.ascent()), notes.front());
  y += step;
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    painter.fillRect(QRectF(box.left() + 7, y + step / 2 - 5, 12, 10), colour_of_part(*part));
    painter.setPen(theme().ink);
    painter.drawText(QPointF(box.left() + 25, y + metrics.ascent()),
                     names[static_cast<std::size_t>(*part)]);
    y += step;
  }
  if (notes.size() < 2) return;
  painter.setPen(theme().faint);
  painter.drawText(QPointF(box.left() + 7, y + metrics.ascent()), notes.back());
}

// ---- The legend of pictures ---------------------------------------------------------------------

namespace {

constexpr double kLegendMark = 24;

struct Legend {
  int columns = 1, rows = 0, left_out = 0;
  double step = 0, width = 0;
};

}  // namespace

static Legend legend_of(std::size_t lines, const QSizeF& size, const QFont& font) {
  Legend legend;
  legend.step = QFontMetricsF(font).lineSpacing() + 2;
  legend.columns = std::max(1, static_cast<int>(size.width() / (36 * legend.step / 1.6)));
  legend.columns = std::min(legend.columns, static_cast<int>(std::max<std::size_t>(lines, 1)));
  legend.width = size.width() / legend.columns;
  const int most = std::max(1, static_cast<int>(0.35 * size.height() / legend.step));
  const int needed = (static_cast<int>(lines) + legend.columns - 1) / legend.columns;
  legend.rows = std::min(needed, most);
  legend.left_out = std::max(0, static_cast<int>(lines) - legend.rows * legend.columns);
  if (legend.left_out > 0) ++legend.left_out;  // its own place
  return legend;
}

int TimeChart::Plot::legend_height() const {
  if (content_.stacking || content_.difference || content_.lines.empty()) return 0;
  const Legend legend = legend_of(content_.lines.size(), chart()->size(), small_font(font()));
  return static_cast<int>(legend.rows * legend.step) + 10;
}

void TimeChart::Plot::paint_legend(QPainter& painter) {
  const QFontMetricsF metrics(painter.font());
  if (!content_.title.isEmpty()) {
    painter.setPen(theme().ink);
    painter.drawText(QPointF(area_.left(), area_.top() - metrics.height()), content_.title);
  }
  if (legend_height() == 0) return;
  const Legend legend = legend_of(content_.lines.size(), chart()->size(), painter.font());
  const std::vector<QString> names = run_names(document_);
  std::vector<std::size_t> order(content_.lines.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return content_.lines[a].run < content_.lines[b].run;
  });
  const double top = chart()->size().height() - legend_height() + 4;
  const std::size_t listed = order.size() - static_cast<std::size_t>(legend.left_out);
  for (std::size_t k = 0; k <= listed && k < order.size(); ++k) {
    const int column = static_cast<int>(k) / legend.rows;
    const QPointF at(column * legend.width + 14,
                     top + (static_cast<int>(k) % legend.rows) * legend.step);
    if (k == listed) {
      painter.setPen(theme().faint);
      painter.drawText(at + QPointF(kLegendMark, metrics.ascent()),
                       QString("and %1 more runs").arg(legend.left_out));
      break;
    }
    const ChartLine& line = content_.lines[order[k]];
    painter.setPen(run_pen(shown(line).colour, line.current ? 2.6 : 1.6));
    const double middle = at.y() + metrics.height() / 2;
    painter.drawLine(QPointF(at.x(), middle), QPointF(at.x() + kLegendMark - 6, middle));
    QString figures;
    if (peaks_[order[k]].row >= 0) figures = "peak " + text_of(peaks_[order[k]].said);
    if (const auto footprint = figure(shown(line).run(), "footprint")) {
      figures += (figures.isEmpty() ? "" : ", ") + ("footprint " + percent_text(footprint));
    }
    const double room = legend.width - kLegendMark - 24;
    const double of_figures = metrics.horizontalAdvance(figures);
    const QString name = metrics.elidedText(names[static_cast<std::size_t>(line.run)],
                                            Qt::ElideMiddle, room - of_figures - 10);
    painter.setPen(theme().ink);
    painter.drawText(at + QPointF(kLegendMark, metrics.ascent()), name);
    painter.setPen(theme().faint);
    painter.drawText(
        at + QPointF(kLegendMark + metrics.horizontalAdvance(name) + 10, metrics.ascent()),
        figures);
  }
}

// ---- Selection and readouts ---------------------------------------------------------------------

void TimeChart::Plot::paint_front(QPainter& painter) {
  if (document_.selection().empty() || !content_.message.isEmpty()) return;
  const Theme& t = theme();
  const Rows selection = rubber_.value_or(document_.selection());
  painter.setFont(small_font(font()));
  const double left = std::max(x_of(static_cast<double>(selection.begin)), area_.left());
  const double right = std::min(x_of(static_cast<double>(selection.end)), area_.right());
  // In a picture an instant says nothing that the text around it would not.
  if (left <= area_.right() && right >= area_.left() && !(paper_ && selection.size() == 1)) {
    QColor band = t.accent;
    band.setAlphaF(0.16F);
    const double x = std::round((left + right) / 2) + 0.5;
    painter.setPen(QPen(t.accent, 1));
    if (right - left < 3) {
      painter.drawLine(QPointF(x, area_.top()), QPointF(x, area_.bottom()));
    } else {
      painter.fillRect(QRectF(left, area_.top(), right - left, area_.height()), band);
      for (const double edge : {left, right}) {
        painter.drawLine(QPointF(edge, area_.top()), QPointF(edge, area_.bottom()));
      }
    }
  }
  if (paper_ || !hover_ || drag_ == Drag::pan) return;
  painter.setRenderHint(QPainter::Antialiasing, true);
  if (rubber_) {
    draw_box(painter, *hover_, front_->boundingRect(), rubber_readout());
    return;
  }
  const RowIndex row = row_at(hover_->x());
  const double x = x_of(static_cast<double>(row) + 0.5);
  painter.setPen(QPen(t.faint, 1, Qt::DashLine));
  painter.drawLine(QPointF(x, area_.top()), QPointF(x, area_.bottom()));
  painter.setPen(QPen(t.paper, 1));
  for (const ChartLine& line : content_.lines) {
    if (row >= line.measure.series->rows()) continue;
    const double value = line.measure.at(row);
    if (std::isnan(value)) continue;
    painter.setBrush(run_colour(shown(line).colour));
    painter.drawEllipse(QPointF(x, y_of(value)), 3, 3);
  }
  draw_box(painter, *hover_, front_->boundingRect(), readout(row));
}

std::vector<BoxLine> TimeChart::Plot::readout(RowIndex row) const {
  std::vector<BoxLine> box;
  const ShownRun* current = document_.current_run();
  const bool prefill = current != nullptr && row < current->result->trace.prompt;
  box.push_back({QString("row %1, %2").arg(count_text(row), prefill ? "prefill" : "decode"), {}});
  if (content_.stacking) {
    const std::vector<QString>& names = content_.stacking->names();
    if (row >= content_.lines.back().measure.series->rows()) return box;
    std::vector<double> parts(names.size());
    content_.stacking->parts_at(row, parts);
    box.front().value = text_of(std::accumulate(parts.begin(), parts.end(), 0.0));
    std::vector<std::size_t> order(parts.size());
    std::iota(order.rbegin(), order.rend(), std::size_t{0});
    const std::size_t listed = std::min<std::size_t>(order.size(), 2 * kReadout);
    for (std::size_t k = 0; k < listed; ++k) {
      const auto part = static_cast<int>(order[k]);
      box.push_back({names[order[k]], text_of(parts[order[k]]),
                     QPen(colour_of_part(part), 8, Qt::SolidLine, Qt::FlatCap)});
    }
    if (listed < order.size())
      box.push_back({QString("and %1 more").arg(order.size() - listed), {}});
    return box;
  }
  const std::vector<QString> names = run_names(document_);
  struct Value {
    const ChartLine* line;
    double value;
  };
  std::vector<Value> values;
  for (const ChartLine& line : content_.lines) {
    if (row >= line.measure.series->rows()) continue;
    const double value = line.measure.at(row);
    if (!std::isnan(value)) values.push_back({&line, value});
  }
  if (values.empty()) box.push_back({"not measured in this row", {}});
  std::stable_sort(values.begin(), values.end(),
                   [](const Value& a, const Value& b) { return a.value > b.value; });
  for (std::size_t k = 0; k < std::min(values.size(), kReadout); ++k) {
    const ChartLine& line = *values[k].line;
    box.push_back({names[static_cast<std::size_t>(line.run)], text_of(values[k].value),
                   run_pen(shown(line).colour, line.current ? 3 : 1.6)});
  }
  if (values.size() > kReadout) {
    box.push_back({QString("and %1 more").arg(values.size() - kReadout), {}});
  }
  return box;
}

std::vector<BoxLine> TimeChart::Plot::rubber_readout() const {
  std::vector<BoxLine> box{{rows_text(*rubber_), count_text(rubber_->size())}};
  if (content_.lines.empty()) return box;
  const ChartLine& line = content_.lines.back();
  if (rubber_->end > line.measure.series->rows()) return box;
  const double start = line.measure.at(rubber_->begin);
  const double end = line.measure.at(rubber_->end - 1);
  box.push_back({"start", text_of(start)});
  box.push_back({"end", text_of(end)});
  box.push_back({"change", difference_text(content_.quantity, end - start)});
  return box;
}

// ---- Mouse --------------------------------------------------------------------------------------

void TimeChart::Plot::mousePressEvent(QMouseEvent* event) {
  if (drag_ != Drag::none || zoom_.empty()) return;
  setFocus(Qt::MouseFocusReason);
  pressed_ = event->position();
  zoom_pressed_ = document_.zoom();
  const bool left = event->button() == Qt::LeftButton && !(event->modifiers() & Qt::AltModifier);
  drag_ = left ? Drag::select : Drag::pan;
  if (drag_ == Drag::pan) setCursor(Qt::ClosedHandCursor);
}

void TimeChart::Plot::mouseMoveEvent(QMouseEvent* event) {
  const QPointF at = event->position();
  hover_ = drag_ != Drag::none || area_.contains(at) ? std::optional(at) : std::nullopt;
  if (drag_ == Drag::pan) {
    const auto by = static_cast<RowIndex>(std::llround((pressed_.x() - at.x()) / pixels_per_row()));
    document_.set_zoom({zoom_pressed_.begin + by, zoom_pressed_.end + by});
  } else if (drag_ == Drag::select && (rubber_ || std::abs(at.x() - pressed_.x()) > kSlop)) {
    const RowIndex from = row_at(pressed_.x());
    const RowIndex to = row_at(at.x());
    rubber_ = {std::min(from, to), std::max(from, to) + 1};
  }
  front_->update();
}

void TimeChart::Plot::mouseReleaseEvent(QMouseEvent* event) {
  const Drag drag = std::exchange(drag_, Drag::none);
  unsetCursor();
  if (drag == Drag::select) {
    selection_before_ = document_.selection();
    if (rubber_) {
      document_.set_selection(*std::exchange(rubber_, std::nullopt));
    } else {
      const RowIndex row = row_at(event->position().x());
      document_.set_selection({row, row + 1});
      choose_line(event->position());
    }
  }
  front_->update();
}

// The first click of the two has selected an instant: what counts is what was selected before.
void TimeChart::Plot::mouseDoubleClickEvent(QMouseEvent* event) {
  if (event->button() != Qt::LeftButton || zoom_.empty()) return;
  const RowIndex row = row_at(event->position().x());
  const Rows before = selection_before_;
  if (before.size() > 1 && before.begin <= row && row < before.end) {
    document_.set_selection(before);
    document_.set_zoom(before);
  } else {
    document_.zoom_out();
  }
}

void TimeChart::Plot::leaveEvent(QEvent* event) {
  hover_.reset();
  front_->update();
  QChartView::leaveEvent(event);
}

// A step that is too small for a row is kept for the next one.
void TimeChart::Plot::wheelEvent(QWheelEvent* event) {
  event->accept();
  if (zoom_.empty()) return;
  const QPoint delta = event->angleDelta();
  const bool sideways =
      std::abs(delta.x()) > std::abs(delta.y()) || (event->modifiers() & Qt::ShiftModifier) != 0;
  wheel_ += (delta.x() != 0 && sideways ? delta.x() : delta.y()) / 120.0;
  const Rows before = document_.zoom();
  if (sideways) {
    pan(static_cast<RowIndex>(std::trunc(-wheel_ * static_cast<double>(before.size()) / 10)));
  } else {
    zoom_by(std::pow(0.8, wheel_), event->position().x());
  }
  if (document_.zoom() != before || std::abs(wheel_) > 4) wheel_ = 0;
}

void TimeChart::Plot::zoom_by(double factor, double anchor) {
  const Rows zoom = document_.zoom();
  const double share = std::clamp((anchor - area_.left()) / area_.width(), 0.0, 1.0);
  const auto rows = static_cast<double>(zoom.size());
  const auto size = static_cast<RowIndex>(std::llround(rows * factor));
  const double fixed = static_cast<double>(zoom.begin) + share * rows;
  const auto begin = static_cast<RowIndex>(std::llround(fixed - share * static_cast<double>(size)));
  document_.set_zoom({begin, begin + size});
}

// The line that is nearest makes its run the current one.
void TimeChart::Plot::choose_line(const QPointF& at) {
  double nearest = kNear;
  int run = -1;
  const double from =
      (at.x() - 2 - area_.left()) / pixels_per_row() + static_cast<double>(zoom_.begin);
  const double to = from + 4 / pixels_per_row();
  for (std::size_t i = 0; i < lines_.size(); ++i) {
    const std::vector<QPointF>& line = lines_[i];
    auto point = std::lower_bound(line.begin(), line.end(), from,
                                  [](const QPointF& p, double x) { return p.x() < x; });
    if (point == line.end()) continue;
    if (point != line.begin()) --point;
    double low = y_at(point->y());
    double high = low;
    for (; point != line.end(); ++point) {
      low = std::min(low, y_at(point->y()));
      high = std::max(high, y_at(point->y()));
      if (point->x() > to) break;
    }
    const double away = std::max({low - at.y(), at.y() - high, 0.0});
    if (away > nearest) continue;
    nearest = away;
    run = content_.lines[i].run;
  }
  if (run >= 0) document_.set_current(run);
}

// ---- Keys ---------------------------------------------------------------------------------------

// Selects, and moves the zoom as far as that takes to show the end that moved.
void TimeChart::Plot::select(Rows rows) {
  document_.set_selection(rows);
  const Rows zoom = document_.zoom();
  const Rows now = document_.selection();
  if (now.size() > zoom.size()) return;
  if (now.begin < zoom.begin) pan(now.begin - zoom.begin);
  if (now.end > zoom.end) pan(now.end - zoom.end);
}

void TimeChart::Plot::next_line(int step) {
  std::vector<int> runs;
  for (std::size_t r = 0; r < document_.runs().size(); ++r) {
    if (document_.runs()[r].visible) runs.push_back(static_cast<int>(r));
  }
  if (runs.empty()) return;
  const auto count = static_cast<int>(runs.size());
  const auto at = std::find(runs.begin(), runs.end(), document_.current()) - runs.begin();
  document_.set_current(runs[static_cast<std::size_t>((at % count + step + count) % count)]);
}

void TimeChart::Plot::keyPressEvent(QKeyEvent* event) {
  if (zoom_.empty()) return event->ignore();
  const bool grow = (event->modifiers() & Qt::ShiftModifier) != 0;
  const bool control = (event->modifiers() & Qt::ControlModifier) != 0;
  const RowIndex column = std::max<RowIndex>(1, zoom_.size() / 10);
  const Rows chosen = document_.selection();
  const auto move = [&](RowIndex by) {
    if (control) {
      pan(by < 0 ? -column : column);
    } else if (grow) {
      select({chosen.begin, std::max(chosen.begin + 1, chosen.end + by)});
    } else {
      // All of it, up to the first or last row.
      by = std::clamp(by, -chosen.begin, document_.rows() - chosen.end);
      select({chosen.begin + by, chosen.end + by});
    }
  };
  const auto change = [&](const auto& with) {
    Display display = document_.display();
    with(display);
    document_.set_display(display);
  };
  const double middle =
      x_of((static_cast<double>(chosen.begin) + static_cast<double>(chosen.end)) / 2);
  const double anchor = std::clamp(middle, area_.left(), area_.right());
  switch (event->key()) {
    case Qt::Key_Left:
      return move(-1);
    case Qt::Key_Right:
      return move(1);
    case Qt::Key_PageUp:
      return move(-column);
    case Qt::Key_PageDown:
      return move(column);
    case Qt::Key_Up:
      return next_line(-1);
    case Qt::Key_Down:
      return next_line(1);
    case Qt::Key_Plus:
    case Qt::Key_Equal:
      return zoom_by(0.8, anchor);
    case Qt::Key_Minus:
      return zoom_by(1.25, anchor);
    case Qt::Key_Home:
      return document_.zoom_out();
    case Qt::Key_Return:
    case Qt::Key_Enter:
      return document_.set_zoom(chosen);
    case Qt::Key_P: {
      if (content_.lines.empty() || peaks_.back().row < 0) return;
      const RowIndex row = peaks_.back().row;
      return select({row, row + 1});
    }
    case Qt::Key_E:
      return change([](Display& display) { display.quantity = Quantity::entries; });
    case Qt::Key_B:
      return change([](Display& display) { display.quantity = Quantity::bytes; });
    case Qt::Key_Percent:
      return change([](Display& display) { display.quantity = Quantity::percent; });
    case Qt::Key_M:
      return change([](Display& display) { display.quantity = Quantity::mass; });
    case Qt::Key_L:
      return change([](Display& display) { display.log = !display.log; });
    case Qt::Key_S:
      return change([](Display& display) {
        display.stack = static_cast<Stack>((static_cast<int>(display.stack) + 1) % 4);
      });
    default:
      event->ignore();
  }
}

// ---- Minimap ------------------------------------------------------------------------------------

// One line over all rows, and the zoom as a window that can be moved and resized.
class TimeChart::Minimap final : public QWidget {
 public:
  Minimap(Document& document, const Plot& plot, QWidget* parent)
      : QWidget(parent), document_(document), plot_(plot) {
    setFixedHeight(36);
    setMouseTracking(true);
    setAccessibleName("Map of all rows");
    connect(&document_, &Document::zoom_changed, this, [this] { update(); });
    connect(&document_, &Document::selection_changed, this, [this] { update(); });
  }
  void content_changed() {
    shape_ = QPixmap();
    update();
  }

 protected:
  void resizeEvent(QResizeEvent* /*event*/) override { content_changed(); }

  void paintEvent(QPaintEvent* /*event*/) override {
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
    painter.fillRect(
        QRectF(chosen.left(), area.top(), std::max(1.0, chosen.width()), area.height()), band);
    painter.setRenderHint(QPainter::Antialiasing);
    painter.setPen(QPen(t.faint, 1));
    painter.drawRect(window.adjusted(0.5, 0.5, -0.5, -0.5));
    painter.setPen(QPen(t.faint, 3, Qt::SolidLine, Qt::RoundCap));
    for (const double x : {window.left() + 0.5, window.right() - 0.5}) {
      painter.drawLine(QPointF(x, area.center().y() - 5), QPointF(x, area.center().y() + 5));
    }
  }

  void mousePressEvent(QMouseEvent* event) override {
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
  void mouseMoveEvent(QMouseEvent* event) override {
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
  void mouseReleaseEvent(QMouseEvent* /*event*/) override { grip_ = Grip::none; }
  void mouseDoubleClickEvent(QMouseEvent* /*event*/) override { document_.zoom_out(); }

 private:
  enum class Grip { none, left, right, window };

  [[nodiscard]] QRectF strip() const {
    const QRectF area = plot_.area();
    return {area.left(), 3, area.width(), height() - 8.0};
  }
  [[nodiscard]] QRectF window_of(Rows rows) const {
    const QRectF area = strip();
    const double each = area.width() / static_cast<double>(document_.rows());
    return {area.left() + static_cast<double>(rows.begin) * each, area.top(),
            std::max(3.0, static_cast<double>(rows.size()) * each), area.height()};
  }
  [[nodiscard]] RowIndex rows_of(double pixels) const {
    return std::llround(pixels / strip().width() * static_cast<double>(document_.rows()));
  }
  [[nodiscard]] Grip grip_at(double x) const {
    if (document_.rows() == 0) return Grip::none;
    const QRectF window = window_of(document_.zoom());
    if (std::abs(x - window.left()) <= 4) return Grip::left;
    if (std::abs(x - window.right()) <= 4) return Grip::right;
    return x > window.left() && x < window.right() ? Grip::window : Grip::none;
  }

  void draw_shape() {
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

  Document& document_;
  const Plot& plot_;
  QPixmap shape_;
  Grip grip_ = Grip::none;
  double pressed_ = 0;
  Rows before_;
};

// ---- The chart ----------------------------------------------------------------------------------

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
