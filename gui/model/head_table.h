// SPDX-License-Identifier: Apache-2.0
// One figure of every (layer, head) of a run, as a table.
#pragma once

#include <QAbstractTableModel>
#include <optional>
#include <vector>

#include "gui/model/document.h"

namespace kvspan::gui {

// Rows: stored layers; columns: stored heads, or query heads of retained mass. Qt::EditRole: the
// share, or the difference of shares, invalid where it is not known.
class HeadTable final : public QAbstractTableModel {
  Q_OBJECT
 public:
  using QAbstractTableModel::QAbstractTableModel;

  // Of a run; with a baseline of as many layers and heads, less that one's. Nulls: empty.
  void set(const ShownRun* shown, const ShownRun* baseline, HeadFigure figure);

  [[nodiscard]] int layers() const { return static_cast<int>(layer_ids_.size()); }
  [[nodiscard]] int heads() const { return heads_; }
  // Query heads that share a stored head's column; 1 where columns are stored heads.
  [[nodiscard]] int group() const { return group_; }
  [[nodiscard]] bool is_difference() const { return difference_; }
  [[nodiscard]] int model_layer(int layer) const {
    return layer_ids_[static_cast<std::size_t>(layer)];
  }
  // REQUIRES: indices in range. NaN: not known.
  [[nodiscard]] double at(int layer, int head) const;
  // Of a layer, a head, or all (-1); of what is known.
  [[nodiscard]] double mean(int layer, int head) const;

  [[nodiscard]] int rowCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] int columnCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] QVariant data(const QModelIndex& index, int role = Qt::DisplayRole) const override;
  [[nodiscard]] QVariant headerData(int section, Qt::Orientation orientation,
                                    int role = Qt::DisplayRole) const override;

 private:
  std::vector<int> layer_ids_;
  int heads_ = 0, group_ = 1;
  bool difference_ = false;
  std::vector<double> values_;  // [layers, heads]
};

// The figure's key in per_head of the result JSON.
[[nodiscard]] const char* head_key(HeadFigure figure);

}  // namespace kvspan::gui
