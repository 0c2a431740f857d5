// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/held_table.h"

#include <algorithm>
#include <array>
#include <vector>

#include "gui/paint/theme.h"
#include "gui/paint/token_text.h"

namespace kvspan::gui {
namespace {

constexpr std::array kWidths{92, 84, 92, 70, 74};  // of the columns of HeadsModel

int all_rows(const HeadsModel& model) {
  int all = 0;
  for (int r = 0; r < model.rowCount(); ++r) all += 1 + model.rowCount(model.index(r, 0, {}));
  return all;
}

// The rows that `room` lines show.
std::vector<QModelIndex> rows_of(const HeadsModel& model, int room) {
  const bool heads = all_rows(model) <= room;
  std::vector<QModelIndex> rows;
  for (int r = 0; r < model.rowCount(); ++r) {
    const QModelIndex top = model.index(r, 0, {});
    rows.push_back(top);
    for (int h = 0; heads && h < model.rowCount(top); ++h) {
      rows.push_back(model.index(h, 0, top));
    }
  }
  return rows;
}

}  // namespace

int held_line_height(const QFontMetrics& metrics) { return metrics.height() + 5; }

int held_table_height(const QFontMetrics& metrics, const HeadsModel& model) {
  return (all_rows(model) + 1) * held_line_height(metrics);
}

void paint_held_table(QPainter& painter, const QRect& area, const HeadsModel& model) {
  const int line = held_line_height(painter.fontMetrics());
  const auto cell = [&](int y, int column, const QString& text) {
    int x = area.left();
    for (int c = 0; c < column; ++c) x += kWidths[static_cast<std::size_t>(c)];
    const int side = column == 0 ? Qt::AlignLeft : Qt::AlignRight;
    painter.drawText(QRect(x, y, kWidths[static_cast<std::size_t>(column)] - 8, line),
                     side | Qt::AlignVCenter, text);
  };
  int y = area.top();
  painter.setPen(theme().faint);
  for (int c = 0; c < HeadsModel::kColumns; ++c) {
    cell(y, c, model.headerData(c, Qt::Horizontal, Qt::DisplayRole).toString());
  }
  painter.drawLine(area.left(), y + line - 1, area.left() + kHeldTableWidth, y + line - 1);
  const int room = (area.height() + 4) / line - 1;
  int shown = 0;
  for (const QModelIndex& row : rows_of(model, room)) {
    if (++shown > room) break;
    y += line;
    const bool is_head = row.parent().isValid();
    const double share = row.siblingAtColumn(HeadsModel::kShare).data(Qt::EditRole).toDouble();
    QColor bar = held_colour();
    bar.setAlpha(is_head ? 70 : 120);
    painter.fillRect(QRectF(area.left() + kWidths[0] + kWidths[1] + kWidths[2], y + 2,
                            share * (kWidths[3] - 4), line - 4),
                     bar);
    painter.setPen(theme().ink);
    for (int c = 0; c < HeadsModel::kColumns; ++c) {
      cell(y, c, (is_head && c == 0 ? "    " : "") + row.siblingAtColumn(c).data().toString());
    }
  }
}

void HeldScale::set_heads(int heads, bool host) {
  heads_ = heads;
  host_ = host;
  update();
}

void HeldScale::paint(QPainter& painter, const QRect& area) const {
  if (heads_ > 0) {
    paint_held_scale(painter, area, heads_ == 1 ? "evicted" : "held by 0",
                     (heads_ == 1 ? QString("held") : QString("%1 heads").arg(heads_)) +
                         (host_ ? ", on device or host" : ""));
  }
}

void HeldScale::paintEvent(QPaintEvent* /*event*/) {
  QPainter painter(this);
  paint(painter, rect());
}

}  // namespace kvspan::gui
