// SPDX-License-Identifier: Apache-2.0
// What maps of coloured cells share.
#pragma once

#include <QColor>
#include <QPainter>
#include <QRectF>
#include <QString>
#include <functional>

namespace kvspan::gui {

// A cell in whole pixels, so that neighbours leave no seam; with a gap where there is room for one.
void fill_cell(QPainter& painter, const QRectF& place, const QColor& colour);

// A scale from the bottom up: colours and labels of shares in [0, 1], beside it on the right. Lines
// are `line` high.
void draw_colour_bar(QPainter& painter, const QRectF& place, double line,
                     const std::function<QColor(double share)>& colour,
                     const std::function<QString(double share)>& label);

// Every which cell, of 1, 2, 4, ... 32, has a label `need` wide where cells are `size` wide.
[[nodiscard]] int label_step(double need, double size);

}  // namespace kvspan::gui
