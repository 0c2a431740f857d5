// SPDX-License-Identifier: Apache-2.0
// Tokens to the right, rows downwards: what one head holds, reads and has lost, after Figure 1 of
// arXiv 2506.17121. The map is made beside the window at the size of its pixels; while the next one
// is made, the last one is shown where it belongs.
#pragma once

#include <QPainter>
#include <QString>
#include <QWidget>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "gui/model/background.h"
#include "gui/model/document.h"
#include "gui/model/lives.h"
#include "gui/paint/life_picture.h"
#include "sim/report/lifetimes_reader.h"

namespace kvspan::gui {

class LifetimeMap final : public QWidget {
 public:
  static constexpr int kLegendHeight = 20;
  enum class Of : std::uint8_t { current, baseline };
  LifetimeMap(Document& document, QWidget* parent, Of of = Of::current);

  std::function<void()> changed;  // the head, what is known of it, or whether work goes on
  std::function<void()> moved;    // the tokens that are shown

  [[nodiscard]] const std::optional<WhichHead>& shown() const { return which_; }
  [[nodiscard]] const Attention& attention() const { return attention_; }
  [[nodiscard]] bool wants_attention() const { return wants_attention_; }
  [[nodiscard]] bool is_busy() const { return attention_work_.busy(); }
  [[nodiscard]] bool is_ready() const { return !map_work_.busy() && !attention_work_.busy(); }
  [[nodiscard]] QString message() const { return message_; }  // why there is no attention
  [[nodiscard]] std::shared_ptr<const Trace> trace() const { return trace_; }

  // Takes over what the document shows now.
  void follow();

  // Of the document: every map shows attention, or none.
  void set_attention(bool on);
  void follow_display();

  // Asks for the map in the size and colours of now; what is not seen is not made.
  void request();

  // Title, legend and map in `size`, made here and now.
  void draw(QPainter& painter, const QSize& size, double scale);

  // "h2o(budget=20%), layer 14, head 0"; empty: no run.
  [[nodiscard]] QString title() const;

  // Right-aligned in `area`.
  void paint_legend(QPainter& painter, const QRect& area) const;

  void fit();
  // By `factor` of what is shown, where (x, y) in [0, 1] stays.
  void zoom(double factor, double x, double y, bool only_rows = false, bool only_tokens = false);
  void set_tokens(Rows tokens);
  [[nodiscard]] Rows tokens() const { return tokens_; }
  // Rows that are shown: of the document's zoom, those of this trace.
  [[nodiscard]] Rows rows() const;

  // The token under a point and its row; nullopt: not on the map.
  [[nodiscard]] std::optional<std::pair<std::int64_t, RowIndex>> under(const QPoint& point) const;

  // What is known of a token, on one line.
  [[nodiscard]] QString facts(std::int64_t token) const;

 protected:
  void paintEvent(QPaintEvent* event) override;
  void resizeEvent(QResizeEvent* event) override;
  void showEvent(QShowEvent* event) override;
  void changeEvent(QEvent* event) override;
  bool event(QEvent* event) override;
  void wheelEvent(QWheelEvent* event) override;
  void mousePressEvent(QMouseEvent* event) override;
  void mouseMoveEvent(QMouseEvent* event) override;
  void mouseReleaseEvent(QMouseEvent* event) override;
  void keyPressEvent(QKeyEvent* event) override;

 private:
  // Where tokens and rows are.
  struct Place {
    QRect map;
    Rows tokens, rows;
    [[nodiscard]] double x_of(double token) const {
      return map.left() + (token - static_cast<double>(tokens.begin)) * map.width() /
                              static_cast<double>(tokens.size());
    }
    [[nodiscard]] double y_of(double row) const {
      return map.top() + (row - static_cast<double>(rows.begin)) * map.height() /
                             static_cast<double>(rows.size());
    }
  };
  [[nodiscard]] const Run& run() const { return which_->result->runs[which_->run]; }
  [[nodiscard]] const LifetimesFile::Run& file_run() const;
  [[nodiscard]] bool knows_reads() const;
  [[nodiscard]] Attention shown_attention() const;
  [[nodiscard]] const std::vector<Span>* spans() const;

  [[nodiscard]] QRect map_rect(const QRect& area) const;
  [[nodiscard]] std::optional<LifeFrame> frame_for(const QRect& map, double scale) const;

  void notify() const;
  void choose(std::int64_t token, RowIndex row);
  void turn_head(int by);
  // Moves what is shown so that the focused token is on it.
  void show_token();

  void start_attention();

  void paint_sentence(QPainter& painter, const QRect& area, const QString& text) const;

  void paint(QPainter& painter, const QRect& area, bool interactive);

  void paint_marks(QPainter& painter, const Place& at, bool interactive) const;
  [[nodiscard]] static QColor mark_colour();

  void paint_axes(QPainter& painter, const QRect& area, const Place& at) const;

  void paint_spans(QPainter& painter, const Place& at) const;

  Document& document_;
  Of of_;
  Background map_work_, attention_work_;
  std::optional<WhichHead> which_;
  Rows tokens_;
  std::optional<LifePicture> picture_;
  Attention attention_;
  bool wants_attention_;
  QString empty_, error_, message_;
  std::shared_ptr<const Trace> trace_;  // or null
  std::optional<QRect> drag_;
};

}  // namespace kvspan::gui
