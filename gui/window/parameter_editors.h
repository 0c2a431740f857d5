// SPDX-License-Identifier: Apache-2.0
// Editors by the kind of a parameter: a spin box with unit and range, a combo box of words, a line.
#pragma once

#include <QStyledItemDelegate>

#include "gui/model/policy_form.h"

namespace kvspan::gui {

class ParameterEditors final : public QStyledItemDelegate {
 public:
  using QStyledItemDelegate::QStyledItemDelegate;

  QWidget* createEditor(QWidget* parent, const QStyleOptionViewItem& option,
                        const QModelIndex& index) const override;

  void setEditorData(QWidget* editor, const QModelIndex& index) const override;

  void setModelData(QWidget* editor, QAbstractItemModel* model,
                    const QModelIndex& index) const override;

 protected:
  void initStyleOption(QStyleOptionViewItem* option, const QModelIndex& index) const override;

 private:
  static const Parameter& parameter(const QModelIndex& index);
  static bool may_be_auto(const Parameter& p) { return p.fallback == "auto"; }
};

}  // namespace kvspan::gui
