// SPDX-License-Identifier: Apache-2.0
// What is held, painted: a table of layers and heads with bars of their shares, and the scale of
// texts that are coloured by how many heads hold them.
#pragma once

#include <QFontMetrics>
#include <QPainter>
#include <QWidget>

#include "gui/model/head_model.h"

namespace kvspan::gui {

inline constexpr int kHeldTableWidth = 404;
[[nodiscard]] int held_line_height(const QFontMetrics& metrics);
// Of the table with all of its heads.
[[nodiscard]] int held_table_height(const QFontMetrics& metrics, const HeadsModel& model);
// Layers alone where heads have no room.
void paint_held_table(QPainter& painter, const QRect& area, const HeadsModel& model);

class HeldScale final : public QWidget {
 public:
  explicit HeldScale(QWidget* parent) : QWidget(parent) { setMinimumSize(150, 20); }
  // host: held includes what is on the host.
  void set_heads(int heads, bool host);
  void paint(QPainter& painter, const QRect& area) const;

 protected:
  void paintEvent(QPaintEvent* event) override;

 private:
  int heads_ = 0;
  bool host_ = false;
};

}  // namespace kvspan::gui
