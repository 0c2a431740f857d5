// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/mark_delegate.h"

#include <QApplication>
#include <QPainter>

#include "gui/paint/theme.h"
#include "gui/paint/tradeoff_plot.h"

namespace kvspan::gui {

void MarkDelegate::paint(QPainter* painter, const QStyleOptionViewItem& option,
                         const QModelIndex& index) const {
  QStyledItemDelegate::paint(painter, option, index);
  const int slot = index.data(colour_role_).toInt();
  if (index.column() != 0 || slot < 0) return;
  QStyleOptionViewItem box = option;
  initStyleOption(&box, index);
  const QStyle* style = box.widget != nullptr ? box.widget->style() : QApplication::style();
  const QRectF place = style->subElementRect(QStyle::SE_ItemViewItemDecoration, &box, box.widget);
  painter->save();
  painter->setRenderHint(QPainter::Antialiasing);
  painter->setPen(Qt::NoPen);
  painter->setBrush(run_colour(slot));
  draw_mark(*painter, place.center(), 8, index.data(mark_role_).toInt());
  painter->restore();
}

void MarkDelegate::initStyleOption(QStyleOptionViewItem* option, const QModelIndex& index) const {
  QStyledItemDelegate::initStyleOption(option, index);
  if (index.column() != 0 || index.data(colour_role_).toInt() < 0) return;
  option->decorationSize = QSize(10, 10);
  option->features |= QStyleOptionViewItem::HasDecoration;
}

}  // namespace kvspan::gui
