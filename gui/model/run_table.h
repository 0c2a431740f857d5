// SPDX-License-Identifier: Apache-2.0
// The runs that are open, one a line, with their figures and with what they hold in the selected
// rows. Numbers are those of the result JSON; Qt::EditRole holds them exactly.
#pragma once

#include <QAbstractTableModel>
#include <vector>

#include "gui/model/document.h"

namespace kvspan::gui {

class RunTable : public QAbstractTableModel {
  Q_OBJECT
 public:
  enum Column {
    label,  // checkable: shown in charts
    footprint,
    peak_kv,
    peak_memory,
    retained,
    error,
    at_begin,  // of the selection, in the quantity of the charts
    at_end,
    delta,
    file,  // name of the result's
    column_count
  };
  enum Role {
    slot_role = Qt::UserRole,  // int: colour slot
    measured_role,             // bool: a pool's memory, not a simulation
    current_role,              // bool: the run that views of one run show
    baseline_role              // bool: the run that others are compared with
  };

  explicit RunTable(Document& document, QObject* parent = nullptr);

  [[nodiscard]] int rowCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] int columnCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] QVariant data(const QModelIndex& index, int role) const override;
  [[nodiscard]] QVariant headerData(int section, Qt::Orientation orientation,
                                    int role) const override;
  [[nodiscard]] Qt::ItemFlags flags(const QModelIndex& index) const override;
  bool setData(const QModelIndex& index, const QVariant& value, int role) override;

 private:
  Document& document_;
  int rows_ = 0;                // that views know of
  std::vector<QString> names_;  // of the runs
};

}  // namespace kvspan::gui
