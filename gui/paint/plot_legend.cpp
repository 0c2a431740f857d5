// SPDX-License-Identifier: Apache-2.0
// The legends of a plot: of a stack's parts, and of the lines of a picture.
#include <QChart>
#include <algorithm>
#include <numeric>

#include "gui/paint/plot.h"

namespace kvspan::gui {

// Parts that are drawn, from the top to the bottom, as they lie; of many, a few that are evenly
// spread.
void Plot::paint_stack_legend(QPainter& painter) {
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

int Plot::legend_height() const {
  if (content_.stacking || content_.difference || content_.lines.empty()) return 0;
  const Legend legend = legend_of(content_.lines.size(), chart()->size(), small_font(font()));
  return static_cast<int>(legend.rows * legend.step) + 10;
}

void Plot::paint_legend(QPainter& painter) {
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
    painter.setPen(pen_of(line, line.current ? 2.6 : 1.6));
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

}  // namespace kvspan::gui
