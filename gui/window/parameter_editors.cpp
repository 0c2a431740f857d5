// SPDX-License-Identifier: Apache-2.0
#include "gui/window/parameter_editors.h"

#include <QComboBox>
#include <QLineEdit>
#include <QSpinBox>
#include <algorithm>
#include <limits>

#include "gui/paint/theme.h"

namespace kvspan::gui {

QWidget* ParameterEditors::createEditor(QWidget* parent, const QStyleOptionViewItem& /*option*/,
                                        const QModelIndex& index) const {
  const Parameter& p = parameter(index);
  if (!p.words().empty()) {
    auto* words = new QComboBox(parent);
    for (const std::string& word : p.words()) words->addItem(QString::fromStdString(word));
    return words;
  }
  const QString value = index.data(Qt::EditRole).toString();
  bool whole = false;
  value.toInt(&whole);
  if (p.kind == Parameter::Kind::count && (whole || value == "auto")) {
    auto* number = new QSpinBox(parent);
    const auto bounded = [](double limit) {
      constexpr double kMost = std::numeric_limits<int>::max() - 1;
      return static_cast<int>(std::clamp(limit, -kMost, kMost));
    };
    number->setRange(bounded(p.range.lowest) - (may_be_auto(p) ? 1 : 0), bounded(p.range.highest));
    if (may_be_auto(p)) number->setSpecialValueText("auto");
    if (!p.unit.empty()) number->setSuffix(QString::fromStdString(' ' + p.unit));
    number->setFrame(false);
    return number;
  }
  auto* line = new QLineEdit(parent);
  line->setPlaceholderText(QString::fromStdString(p.unit));
  line->setFrame(false);
  return line;
}

void ParameterEditors::setEditorData(QWidget* editor, const QModelIndex& index) const {
  const QString value = index.data(Qt::EditRole).toString();
  if (auto* words = qobject_cast<QComboBox*>(editor)) {
    words->setCurrentText(value);
  } else if (auto* number = qobject_cast<QSpinBox*>(editor)) {
    number->setValue(value == "auto" ? number->minimum() : value.toInt());
  } else if (auto* line = qobject_cast<QLineEdit*>(editor)) {
    line->setText(value);
  }
}

void ParameterEditors::setModelData(QWidget* editor, QAbstractItemModel* model,
                                    const QModelIndex& index) const {
  if (auto* words = qobject_cast<QComboBox*>(editor)) {
    model->setData(index, words->currentText());
  } else if (auto* number = qobject_cast<QSpinBox*>(editor)) {
    const bool unset = may_be_auto(parameter(index)) && number->value() == number->minimum();
    model->setData(index, unset ? QString("auto") : QString::number(number->value()));
  } else if (auto* line = qobject_cast<QLineEdit*>(editor)) {
    model->setData(index, line->text());
  }
}

void ParameterEditors::initStyleOption(QStyleOptionViewItem* option,
                                       const QModelIndex& index) const {
  QStyledItemDelegate::initStyleOption(option, index);
  if (index.column() == PolicyForm::kUnit) {
    option->palette.setColor(QPalette::Text, theme().faint);
  } else {
    option->font.setBold(index.data(PolicyForm::kChangedRole).toBool());
  }
}

const Parameter& ParameterEditors::parameter(const QModelIndex& index) {
  return static_cast<const PolicyForm*>(index.model())->parameter(index.row());
}

}  // namespace kvspan::gui
