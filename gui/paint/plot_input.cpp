// SPDX-License-Identifier: Apache-2.0
// What mouse and keys do in a plot: they change the document.
#include <QKeyEvent>
#include <QMouseEvent>
#include <QWheelEvent>
#include <algorithm>
#include <cmath>

#include "gui/paint/plot.h"

namespace kvspan::gui {

constexpr int kSlop = 4;  // pixels that a click may move
constexpr int kNear = 7;  // pixels to a line that is meant

// ---- Mouse --------------------------------------------------------------------------------------

void Plot::mousePressEvent(QMouseEvent* event) {
  if (drag_ != Drag::none || zoom_.empty()) return;
  setFocus(Qt::MouseFocusReason);
  pressed_ = event->position();
  zoom_pressed_ = document_.zoom();
  const bool left = event->button() == Qt::LeftButton && !(event->modifiers() & Qt::AltModifier);
  drag_ = left ? Drag::select : Drag::pan;
  if (drag_ == Drag::pan) setCursor(Qt::ClosedHandCursor);
}

void Plot::mouseMoveEvent(QMouseEvent* event) {
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

void Plot::mouseReleaseEvent(QMouseEvent* event) {
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
void Plot::mouseDoubleClickEvent(QMouseEvent* event) {
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

void Plot::leaveEvent(QEvent* event) {
  hover_.reset();
  front_->update();
  QChartView::leaveEvent(event);
}

// A step that is too small for a row is kept for the next one.
void Plot::wheelEvent(QWheelEvent* event) {
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

void Plot::zoom_by(double factor, double anchor) {
  const Rows zoom = document_.zoom();
  const double share = std::clamp((anchor - area_.left()) / area_.width(), 0.0, 1.0);
  const auto rows = static_cast<double>(zoom.size());
  const auto size = static_cast<RowIndex>(std::llround(rows * factor));
  const double fixed = static_cast<double>(zoom.begin) + share * rows;
  const auto begin = static_cast<RowIndex>(std::llround(fixed - share * static_cast<double>(size)));
  document_.set_zoom({begin, begin + size});
}

// The line that is nearest makes its run the current one.
void Plot::choose_line(const QPointF& at) {
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
void Plot::select(Rows rows) {
  document_.set_selection(rows);
  const Rows zoom = document_.zoom();
  const Rows now = document_.selection();
  if (now.size() > zoom.size()) return;
  if (now.begin < zoom.begin) pan(now.begin - zoom.begin);
  if (now.end > zoom.end) pan(now.end - zoom.end);
}

void Plot::next_line(int step) {
  std::vector<int> runs;
  for (std::size_t r = 0; r < document_.runs().size(); ++r) {
    if (document_.runs()[r].visible) runs.push_back(static_cast<int>(r));
  }
  if (runs.empty()) return;
  const auto count = static_cast<int>(runs.size());
  const auto at = std::find(runs.begin(), runs.end(), document_.current()) - runs.begin();
  document_.set_current(runs[static_cast<std::size_t>((at % count + step + count) % count)]);
}

void Plot::keyPressEvent(QKeyEvent* event) {
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

}  // namespace kvspan::gui
