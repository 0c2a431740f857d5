// SPDX-License-Identifier: Apache-2.0
#include "gui/model/plain_table.h"

#include "gui/model/numbers.h"

namespace kvspan::gui {

void PlainTable::set(std::vector<Column> columns, std::vector<Row> rows) {
  beginResetModel();
  columns_ = std::move(columns);
  rows_ = std::move(rows);
  endResetModel();
}

int PlainTable::rowCount(const QModelIndex& parent) const {
  return parent.isValid() ? 0 : static_cast<int>(rows_.size());
}

int PlainTable::columnCount(const QModelIndex& parent) const {
  return parent.isValid() ? 0 : static_cast<int>(columns_.size());
}

QVariant PlainTable::data(const QModelIndex& index, int role) const {
  if (!index.isValid()) return {};
  const Row& row = rows_[static_cast<std::size_t>(index.row())];
  const auto column = static_cast<std::size_t>(index.column());
  const Cell& cell = row.cells[column];
  switch (role) {
    case Qt::DisplayRole:
      return cell.text;
    case Qt::EditRole:
      return cell.exact.isValid() ? cell.exact : QVariant(cell.text);
    case Qt::ToolTipRole:
      return cell.tip.isEmpty() ? QVariant() : QVariant(tip_text(cell.tip));
    case Qt::TextAlignmentRole:
      return QVariant((columns_[column].right ? Qt::AlignRight : Qt::AlignLeft) | Qt::AlignVCenter);
    case item_role:
      return cell.item >= 0 ? cell.item : row.item;
    case colour_role:
      return row.colour;
    case mark_role:
      return 0;
    case good_role:
      return cell.good;
    default:
      return {};
  }
}

QVariant PlainTable::headerData(int section, Qt::Orientation orientation, int role) const {
  if (orientation != Qt::Horizontal || section < 0 || section >= columnCount()) return {};
  const Column& column = columns_[static_cast<std::size_t>(section)];
  if (role == Qt::DisplayRole) return column.name;
  if (role == Qt::ToolTipRole) return column.help;
  return {};
}

}  // namespace kvspan::gui
