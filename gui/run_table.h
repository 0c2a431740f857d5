// SPDX-License-Identifier: Apache-2.0
// The runs that are open, one a line, with their figures and with what they hold in the selected
// rows. Numbers are those of the result JSON; Qt::EditRole holds them exactly.
#pragma once

#include <QAbstractTableModel>

#include "gui/document.h"

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
    column_count
  };
  enum Role {
    slot_role = Qt::UserRole,  // int: colour slot
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
  int rows_ = 0;  // that views know of
};

// The series that a quantity is read from (percent: entries), or null.
[[nodiscard]] const Series* series_of(const Run& run, Quantity quantity);
// Its value in a row in the quantity's unit: entries, bytes, or percent (0 to 100); NaN: none.
[[nodiscard]] double value_at(const ShownRun& shown, Quantity quantity, RowIndex row);
// "1.50 MiB", "5 640", "41.3 %"; a dash for NaN.
[[nodiscard]] QString value_text(double value, Quantity quantity);

}  // namespace kvspan::gui
