// SPDX-License-Identifier: Apache-2.0
#include "gui/window/pieces.h"

#include <QAbstractScrollArea>
#include <QColor>
#include <QComboBox>
#include <QFont>
#include <QLabel>
#include <QPalette>
#include <QRegularExpression>
#include <QScrollArea>
#include <algorithm>
#include <cmath>

namespace kvspan::gui {

constexpr int kSliderSteps = 400;  // of a logarithmic scale

LogSlider::LogSlider(QWidget* parent) : QSlider(Qt::Horizontal, parent) {
  setRange(0, kSliderSteps);
  setPageStep(kSliderSteps / 10);
}

void LogSlider::set_limits(TokenCount lowest, TokenCount highest) {
  lowest_ = lowest;
  highest_ = std::max(lowest, highest);
}

TokenCount LogSlider::number() const {
  if (untouched()) return set_;
  const double ratio = static_cast<double>(value()) / kSliderSteps;
  return lowest_ - 1 + static_cast<TokenCount>(std::llround(std::pow(span(), ratio)));
}

void LogSlider::set_number(TokenCount number) {
  const double above = static_cast<double>(std::clamp(number, lowest_, highest_) - lowest_ + 1);
  setValue(span() <= 1
               ? 0
               : static_cast<int>(std::lround(kSliderSteps * std::log(above) / std::log(span()))));
  set_ = number;
  set_at_ = value();
}

QString breakable(QString text) {
  static const QRegularExpression ends("([,/(+]|\\w{24})");
  return text.replace(ends, "\\1" + QString(QChar(0x200B)));
}

QLabel* small_label(QWidget* parent) {
  auto* label = new QLabel(parent);
  label->setTextFormat(Qt::PlainText);
  label->setSizePolicy(QSizePolicy::Ignored, QSizePolicy::Preferred);
  label->setWordWrap(true);
  QFont font = label->font();
  font.setPointSizeF(font.pointSizeF() * 0.92);
  label->setFont(font);
  label->setTextInteractionFlags(Qt::TextSelectableByMouse);
  return label;
}

QLabel* heading(const QString& text, QWidget* parent) {
  auto* label = new QLabel(text, parent);
  QFont font = label->font();
  font.setBold(true);
  label->setFont(font);
  return label;
}

void set_colour(QWidget* widget, const QColor& colour) {
  QPalette palette = widget->palette();
  palette.setColor(QPalette::WindowText, colour);
  widget->setPalette(palette);
}

QScrollArea* scrolled(QWidget* page, QWidget* parent) {
  auto* area = new QScrollArea(parent);
  area->setWidget(page);
  area->setWidgetResizable(true);
  area->setFrameShape(QFrame::NoFrame);
  area->setHorizontalScrollBarPolicy(Qt::ScrollBarAlwaysOff);
  return area;
}

void take_the_rest(QAbstractScrollArea* area, int least) {
  area->setSizePolicy(QSizePolicy::Preferred, QSizePolicy::Ignored);
  area->setMinimumHeight(least);
}

void narrow(QComboBox* box, int letters) {
  box->setMinimumContentsLength(letters);
  box->setSizeAdjustPolicy(QComboBox::AdjustToMinimumContentsLengthWithIcon);
}

}  // namespace kvspan::gui
