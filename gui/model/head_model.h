// SPDX-License-Identifier: Apache-2.0
// What a run holds at one row as a tree: totals, layers, and their heads.
#pragma once

#include <QAbstractItemModel>
#include <memory>
#include <vector>

#include "gui/model/residents.h"

namespace kvspan::gui {

// Totals, layers, and their heads.
class HeadsModel : public QAbstractItemModel {
  Q_OBJECT
 public:
  enum Column { kName, kEntries, kBytes, kShare, kChange, kColumns };
  using QAbstractItemModel::QAbstractItemModel;

  void set(std::shared_ptr<const Holdings> holdings, const TraceInfo& trace);
  [[nodiscard]] HeadScope scope_of(const QModelIndex& index) const;
  [[nodiscard]] QModelIndex index_of(HeadScope scope) const;

  [[nodiscard]] QModelIndex index(int row, int column, const QModelIndex& parent) const override;
  [[nodiscard]] QModelIndex parent(const QModelIndex& child) const override;
  [[nodiscard]] int rowCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] int columnCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] QVariant data(const QModelIndex& index, int role) const override;
  [[nodiscard]] QVariant headerData(int section, Qt::Orientation orientation,
                                    int role) const override;

 private:
  std::shared_ptr<const Holdings> holdings_;
  std::vector<int> layer_ids_;
};

}  // namespace kvspan::gui
