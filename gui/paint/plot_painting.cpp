// SPDX-License-Identifier: Apache-2.0
// What a plot draws: phases and passes, lines, stacks, differences, peaks.
#include <QChart>
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "gui/paint/labels.h"
#include "gui/paint/plot.h"

namespace kvspan::gui {

constexpr double kPassGap = 6;  // pixels between passes that are told apart

// Behind the grid: phases and passes of the current run.
void Plot::paint_back(QPainter& painter) {
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

void Plot::paint_lines(QPainter& painter) {
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
QString Plot::decode_caption() const {
  const ShownRun& current = *document_.current_run();
  const bool same =
      std::all_of(content_.lines.begin(), content_.lines.end(), [&](const ChartLine& line) {
        return shown(line).result->trace.prompt == current.result->trace.prompt;
      });
  return same ? QString("decode")
              : "decode of " + run_names(document_)[static_cast<std::size_t>(document_.current())];
}

void Plot::paint_stack(QPainter& painter) {
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

void Plot::paint_difference(QPainter& painter) {
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
void Plot::paint_peaks(QPainter& painter) {
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
    const std::array offsets{QPointF(-w / 2, -h - 6), QPointF(-w - 4, -h - 5),
                             QPointF(4, -h - 5),      QPointF(-w - 7, -h / 2),
                             QPointF(7, -h / 2),      QPointF(-w / 2, 6),
                             QPointF(-w - 4, 5),      QPointF(4, 5)};
    std::array<QRectF, offsets.size()> places;
    std::transform(offsets.begin(), offsets.end(), places.begin(),
                   [&](const QPointF& offset) { return QRectF(at + offset, size); });
    // On no other label, and on as little of lines as can be.
    std::optional<QRectF> drawn = free_place(
        places, area_.adjusted(1, -4, -1, 0), taken,
        [&](const QRectF& box) { return points_in(box); }, own + k);
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

std::size_t Plot::points_in(const QRectF& box) const {
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

}  // namespace kvspan::gui
