// SPDX-License-Identifier: Apache-2.0
// The plot of values over rows: axes, grid and titles are Qt Charts'; lines are painted by items of
// ours: QLineSeries builds and strokes a path of every line again on each change, which takes ten
// times as long.
#pragma once

#include <QChartView>
#include <QGraphicsItem>
#include <QTimer>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "gui/model/columns.h"
#include "gui/model/document.h"
#include "gui/model/stacking.h"
#include "gui/paint/chart_content.h"
#include "gui/paint/strokes.h"
#include "gui/paint/theme.h"

class QCategoryAxis;
class QLogValueAxis;
class QValueAxis;

namespace kvspan::gui {

// An item over the plot area, painted by a function.
class PlotLayer final : public QGraphicsItem {
 public:
  PlotLayer(QGraphicsItem* parent, double z, std::function<void(QPainter&)> paint)
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

class Plot final : public QChartView {
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
  // The box that is shown beside the mouse, a line a run, its value behind a tab; empty: none is.
  [[nodiscard]] QString hovered_text() const;
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
  [[nodiscard]] QPen pen_of(const ChartLine& line, double width) const {
    return run_pen(shown(line).colour, width, !shown(line).run().replayed.empty());
  }
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
  PlotLayer *back_, *middle_, *front_;
  QTimer still_;

  std::optional<QPointF> hover_;
  enum class Drag { none, select, pan };
  Drag drag_ = Drag::none;
  QPointF pressed_;
  Rows zoom_pressed_, selection_before_;
  std::optional<Rows> rubber_;
  double wheel_ = 0;  // what has not yet moved a row
};

}  // namespace kvspan::gui
