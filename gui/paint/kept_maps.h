// SPDX-License-Identifier: Apache-2.0
// What two runs hold, painted: by token, and by layer and head.
#pragma once

#include <QPainter>
#include <QWidget>
#include <cstdint>
#include <memory>
#include <vector>

#include "gui/model/document.h"
#include "gui/model/kept_sets.h"

namespace kvspan::gui {

using KeptSetsPtr = std::shared_ptr<const KeptSets>;

// From left to right all tokens: how many of the heads hold each in both runs, in one, in none.
class KeptStrip final : public QWidget {
 public:
  KeptStrip(Document& document, QWidget* parent);
  void show(KeptSetsPtr sets, std::int64_t tokens);

 protected:
  void paintEvent(QPaintEvent* event) override;
  bool event(QEvent* event) override;
  void mousePressEvent(QMouseEvent* event) override;
  void keyPressEvent(QKeyEvent* event) override;

 private:
  [[nodiscard]] QRect strip() const;
  [[nodiscard]] std::int64_t token_at(int x) const;
  void choose(std::int64_t token);
  static constexpr int kEdge = 10;
  static constexpr int kMark = 16;
  [[nodiscard]] int legend_step(const char* name) const;
  void paint_legend(QPainter& painter) const;

  Document& document_;
  KeptSetsPtr sets_;
  std::int64_t tokens_ = 0;
};

// Overlap of each (layer, head): layers downwards.
class OverlapMap final : public QWidget {
 public:
  OverlapMap(Document& document, QWidget* parent);
  void show(KeptSetsPtr sets, const TraceInfo& trace, bool choosable);
  [[nodiscard]] QSize sizeHint() const override;

 protected:
  void paintEvent(QPaintEvent* event) override;
  void mousePressEvent(QMouseEvent* event) override;
  void keyPressEvent(QKeyEvent* event) override;
  bool event(QEvent* event) override;

 private:
  static constexpr int kNames = 34;
  static constexpr int kHighest = 26;  // of a cell
  [[nodiscard]] QRectF cell(int layer, int head) const;
  void choose(int layer, int head);

  Document& document_;
  KeptSetsPtr sets_;
  std::vector<int> layer_ids_;
  bool choosable_ = true;
};

}  // namespace kvspan::gui
