// SPDX-License-Identifier: Apache-2.0
// The mark of a line of a chart before the first cell of a table's row.
#pragma once

#include <QStyledItemDelegate>

namespace kvspan::gui {

class MarkDelegate final : public QStyledItemDelegate {
 public:
  // Roles of the model that hold the slot of the colour and the form of the mark.
  MarkDelegate(int colour_role, int mark_role, QObject* parent)
      : QStyledItemDelegate(parent), colour_role_(colour_role), mark_role_(mark_role) {}

  void paint(QPainter* painter, const QStyleOptionViewItem& option,
             const QModelIndex& index) const override;

 protected:
  // Leaves room for the mark.
  void initStyleOption(QStyleOptionViewItem* option, const QModelIndex& index) const override;

 private:
  int colour_role_, mark_role_;
};

}  // namespace kvspan::gui
