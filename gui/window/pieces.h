// SPDX-License-Identifier: Apache-2.0
// Widgets that the pages of the simulate panel are made of.
#pragma once

#include <QSlider>
#include <QString>
#include <QWidget>

#include "sim/policy/policy.h"

class QAbstractScrollArea;
class QComboBox;
class QLabel;
class QScrollArea;

namespace kvspan::gui {

constexpr int kPauseMs = 250;  // of typing, before what was typed is judged

// A slider whose steps are equal ratios of [lowest, highest]; where it was set it stands for that
// very number, which may lie between two steps.
class LogSlider final : public QSlider {
 public:
  explicit LogSlider(QWidget* parent);
  void set_limits(TokenCount lowest, TokenCount highest);
  [[nodiscard]] TokenCount number() const;
  void set_number(TokenCount number);
  // True where set_number() left it.
  [[nodiscard]] bool untouched() const { return value() == set_at_; }

 private:
  [[nodiscard]] double span() const { return static_cast<double>(highest_ - lowest_ + 1); }
  TokenCount lowest_ = 1, highest_ = 1, set_ = 1;
  int set_at_ = -1;  // the value that stands for set_
};

// Lines may end after commas, slashes and brackets too: specs and paths are long words.
[[nodiscard]] QString breakable(QString text);
// As wide as the panel is, whatever it says.
[[nodiscard]] QLabel* small_label(QWidget* parent);
[[nodiscard]] QLabel* heading(const QString& text, QWidget* parent);
void set_colour(QWidget* widget, const QColor& colour);
[[nodiscard]] QScrollArea* scrolled(QWidget* page, QWidget* parent);
// Takes what is left of the height, however little.
void take_the_rest(QAbstractScrollArea* area, int least);
// Is as narrow as a panel needs it.
void narrow(QComboBox* box, int letters);

template <class T>
T* named(T* widget, const QString& name, const QString& help) {
  widget->setObjectName(QString(name).replace(' ', '_'));
  widget->setAccessibleName(name);
  widget->setToolTip(help);
  return widget;
}

}  // namespace kvspan::gui
