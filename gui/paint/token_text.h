// SPDX-License-Identifier: Apache-2.0
// A trace's text, token by token, each on the colour of how many heads hold it.
#pragma once

#include <QAbstractScrollArea>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "sim/trace/trace.h"

namespace kvspan::gui {

// Only the lines that are seen are painted; where lines begin is found once for a width. A trace
// without text is a square for each token.
class TokenText : public QAbstractScrollArea {
 public:
  explicit TokenText(QWidget* parent);

  std::function<void(std::int64_t token)> chosen;  // by mouse or key
  std::function<QString(std::int64_t token)> tip;

  // shares [born tokens] of the heads that hold each, in [0, 1]; later tokens are not born yet
  void show(std::shared_ptr<const Trace> trace, std::int64_t tokens, std::vector<float> shares);
  void set_token(std::int64_t token);  // scrolls to it; -1: none

  // As a picture: the lines around the token, or the first ones.
  void draw(QPainter& painter, const QRect& area);
  // Of the whole text in lines of `width`.
  [[nodiscard]] int height_for(int width);

 protected:
  void paintEvent(QPaintEvent* event) override;
  void resizeEvent(QResizeEvent* event) override;
  void changeEvent(QEvent* event) override;
  void keyPressEvent(QKeyEvent* event) override;
  void mousePressEvent(QMouseEvent* event) override;
  bool viewportEvent(QEvent* event) override;

 private:
  [[nodiscard]] QString label(std::int64_t token) const;
  [[nodiscard]] int width_of(std::int64_t token) const;
  [[nodiscard]] bool breaks_after(std::int64_t token) const;
  [[nodiscard]] bool begins_word(std::int64_t token) const;
  [[nodiscard]] std::vector<std::int64_t> lines(int width) const;
  [[nodiscard]] int line_height() const { return fontMetrics().height() + 3; }
  [[nodiscard]] std::int64_t token_at(const QPoint& point) const;  // -1: none
  void measure();
  void arrange();
  void paint_line(QPainter& painter, const QPoint& at, int width, std::int64_t begin,
                  std::int64_t end) const;

  std::shared_ptr<const Trace> trace_;
  std::int64_t tokens_ = 0;
  std::int64_t token_ = -1;
  std::vector<float> shares_;
  std::vector<int> ascii_;            // widths of the characters below 128
  std::vector<std::int64_t> starts_;  // of lines
  int arranged_ = -1;                 // the width they were found for
};

// The scale of TokenText: from `least` to `most`.
void paint_held_scale(QPainter& painter, const QRect& area, const QString& least,
                      const QString& most);

}  // namespace kvspan::gui
