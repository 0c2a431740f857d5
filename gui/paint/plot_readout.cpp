// SPDX-License-Identifier: Apache-2.0
// The selection of a plot, and what is said of the row under the mouse.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "gui/paint/plot.h"

namespace kvspan::gui {

constexpr std::size_t kReadout = 8;  // lines of a readout

void Plot::paint_front(QPainter& painter) {
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

QString Plot::hovered_text() const {
  if (!hover_ || !content_.message.isEmpty()) return {};
  QStringList lines;
  for (const BoxLine& line : rubber_ ? rubber_readout() : readout(row_at(hover_->x())))
    lines << (line.value.isEmpty() ? line.text : line.text + "\t" + line.value);
  return lines.join('\n');
}

std::vector<BoxLine> Plot::readout(RowIndex row) const {
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
                   pen_of(line, line.current ? 3 : 1.6)});
  }
  if (values.size() > kReadout) {
    box.push_back({QString("and %1 more").arg(values.size() - kReadout), {}});
  }
  return box;
}

std::vector<BoxLine> Plot::rubber_readout() const {
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

}  // namespace kvspan::gui
