// SPDX-License-Identifier: Apache-2.0
// The cells of a sweep, one a line: what they differ in, and their figures.
#pragma once

#include <QAbstractTableModel>
#include <QSortFilterProxyModel>
#include <vector>

#include "gui/model/sweep.h"

namespace kvspan::gui {

// Qt::EditRole: words and numbers as in cells.csv.
class SweepTable final : public QAbstractTableModel {
  Q_OBJECT
 public:
  static constexpr int kSortRole = Qt::UserRole;  // in the order of a parameter's values
  using QAbstractTableModel::QAbstractTableModel;
  void set(SweepPtr sweep);  // null: empty
  [[nodiscard]] const SweepPtr& sweep() const { return sweep_; }

  [[nodiscard]] int rowCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] int columnCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] QVariant data(const QModelIndex& index, int role = Qt::DisplayRole) const override;
  [[nodiscard]] QVariant headerData(int section, Qt::Orientation orientation,
                                    int role = Qt::DisplayRole) const override;

 private:
  // The parameter or, behind them, figure of a column.
  [[nodiscard]] const Sweep::Figure* figure(int column) const;
  SweepPtr sweep_;
  std::vector<Sweep::Parameter> parameters_;  // methods and what else varies
};

// Those that a filter takes, sorted.
class TakenCells final : public QSortFilterProxyModel {
 public:
  explicit TakenCells(SweepTable& table, QObject* parent);
  void set_filter(const SweepFilter& filter);

 protected:
  [[nodiscard]] bool filterAcceptsRow(int row, const QModelIndex& parent) const override;

 private:
  SweepTable& table_;
  SweepFilter filter_;
};

}  // namespace kvspan::gui
