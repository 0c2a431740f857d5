// SPDX-License-Identifier: Apache-2.0
// A table of finished texts with the exact values behind them. Qt::EditRole: those.
#pragma once

#include <QAbstractTableModel>
#include <QString>
#include <QVariant>
#include <utility>
#include <vector>

namespace kvspan::gui {

class PlainTable final : public QAbstractTableModel {
  Q_OBJECT
 public:
  enum Role {
    item_role = Qt::UserRole,  // int: what the row stands for, -1: nothing
    colour_role,               // int: slot of the row's mark, before its first cell; -1: none
    mark_role,                 // int: its form
    good_role                  // double: how good the cell is, in [0, 1]; < 0: it is not judged
  };
  struct Column {
    QString name, help;
    bool right = false;  // aligned
  };
  struct Cell {
    QString text;
    QVariant exact;  // invalid: the text
    QString tip;
    double good = -1;  // see good_role
    int item = -1;     // what the cell stands for, in place of its row's
  };
  struct Row {
    std::vector<Cell> cells;  // one a column
    int item = -1, colour = -1;
  };
  using QAbstractTableModel::QAbstractTableModel;
  void set(std::vector<Column> columns, std::vector<Row> rows);

  [[nodiscard]] int rowCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] int columnCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] QVariant data(const QModelIndex& index, int role = Qt::DisplayRole) const override;
  [[nodiscard]] QVariant headerData(int section, Qt::Orientation orientation,
                                    int role = Qt::DisplayRole) const override;

 private:
  std::vector<Column> columns_;
  std::vector<Row> rows_;
};

}  // namespace kvspan::gui
