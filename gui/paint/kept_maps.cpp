// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/kept_maps.h"

#include <QHelpEvent>
#include <QKeyEvent>
#include <QMouseEvent>
#include <QToolTip>
#include <algorithm>
#include <array>
#include <utility>

#include "gui/model/numbers.h"
#include "gui/paint/theme.h"

namespace kvspan::gui {

namespace {

// Held by both, only by the current run, only by the baseline, by neither; what one of them holds
// more than the other is as in the chart of the difference.
std::array<QColor, 4> set_colours() {
  return {held_colour(), theme().bad, theme().good, theme().unresident};
}

constexpr std::array kSetNames{"in both", "only current", "only baseline", "in neither"};

}  // namespace

// ---- KeptStrip ---

KeptStrip::KeptStrip(Document& document, QWidget* parent) : QWidget(parent), document_(document) {
  setFocusPolicy(Qt::StrongFocus);
  setFixedHeight(fontMetrics().height() * 2 + 44);
  int legend = kEdge;
  for (const char* name : kSetNames) legend += legend_step(name);
  setMinimumWidth(legend);
  setAccessibleName("Tokens held by both runs, by one, by neither");
}

void KeptStrip::show(KeptSetsPtr sets, std::int64_t tokens) {
  sets_ = std::move(sets);
  tokens_ = tokens;
  update();
}

void KeptStrip::paintEvent(QPaintEvent* /*event*/) {
  QPainter painter(this);
  if (!sets_) return;
  paint_legend(painter);
  const QRect box = strip();
  const auto colours = set_colours();
  painter.fillRect(box, theme().paper);
  for (int x = 0; x < box.width(); ++x) {
    const auto begin = x * tokens_ / box.width();
    const auto end = std::max(begin + 1, (x + 1) * tokens_ / box.width());
    std::array<double, 4> part{};
    for (auto t = begin; t < std::min(end, sets_->row + 1); ++t) {
      const auto i = static_cast<std::size_t>(t);
      const std::array<std::int32_t, 3> held{sets_->both[i], sets_->current[i], sets_->baseline[i]};
      part[3] += sets_->scope_heads;
      for (std::size_t k = 0; k < held.size(); ++k) {
        part[k] += held[k];
        part[3] -= held[k];
      }
    }
    const double scale = box.height() / (static_cast<double>(end - begin) * sets_->scope_heads);
    double y = box.bottom() + 1;
    for (std::size_t k = 0; k < part.size(); ++k) {
      const double height = part[k] * scale;
      painter.fillRect(QRectF(box.left() + x, y - height, 1, height), colours[k]);
      y -= height;
    }
  }
  painter.setPen(theme().faint);
  painter.drawRect(box.adjusted(-1, -1, 0, 0));
  const int line = fontMetrics().height();
  painter.drawText(QRect(box.left(), box.bottom() + 2, box.width(), line), Qt::AlignLeft,
                   "token 0");
  painter.drawText(QRect(box.left(), box.bottom() + 2, box.width(), line), Qt::AlignRight,
                   count_text(tokens_ - 1));
  if (const std::int64_t token = document_.focus().token; token >= 0 && token < tokens_) {
    const double x = box.left() + (static_cast<double>(token) + 0.5) * box.width() /
                                      static_cast<double>(tokens_);
    painter.setPen(QPen(theme().ink, 1));
    painter.drawLine(QPointF(x, box.top() - 3), QPointF(x, box.bottom() + 3));
  }
}

bool KeptStrip::event(QEvent* event) {
  if (event->type() == QEvent::ToolTip && sets_) {
    const auto* help = static_cast<QHelpEvent*>(event);
    const std::int64_t token = token_at(help->pos().x());
    if (token <= sets_->row) {
      const auto t = static_cast<std::size_t>(token);
      QToolTip::showText(
          help->globalPos(),
          QString("token %1: both %2, only current %3, only baseline %4, of %5 heads")
              .arg(count_text(token))
              .arg(sets_->both[t])
              .arg(sets_->current[t])
              .arg(sets_->baseline[t])
              .arg(sets_->scope_heads),
          this);
      return true;
    }
  }
  return QWidget::event(event);
}

void KeptStrip::mousePressEvent(QMouseEvent* event) {
  if (sets_) choose(token_at(event->pos().x()));
}

void KeptStrip::keyPressEvent(QKeyEvent* event) {
  const std::int64_t token = document_.focus().token;
  if (sets_ && event->key() == Qt::Key_Left) return choose(std::max<std::int64_t>(0, token - 1));
  if (sets_ && event->key() == Qt::Key_Right) return choose(token + 1);
  QWidget::keyPressEvent(event);
}

QRect KeptStrip::strip() const {
  const int line = fontMetrics().height();
  return rect().adjusted(10, line + 8, -10, -line - 4);
}

std::int64_t KeptStrip::token_at(int x) const {
  const QRect box = strip();
  return std::clamp<std::int64_t>((x - box.left()) * tokens_ / std::max(1, box.width()), 0,
                                  tokens_ - 1);
}

void KeptStrip::choose(std::int64_t token) {
  Focus focus = document_.focus();
  focus.token = token;
  document_.set_focus(focus);
}

int KeptStrip::legend_step(const char* name) const {
  return kMark + fontMetrics().horizontalAdvance(name) + 14;
}

void KeptStrip::paint_legend(QPainter& painter) const {
  const auto colours = set_colours();
  int x = kEdge;
  for (std::size_t i = 0; i < kSetNames.size(); ++i) {
    painter.fillRect(QRect(x, 5, 11, 11), colours[i]);
    painter.setPen(theme().faint);
    painter.drawRect(QRect(x, 5, 10, 10));
    painter.setPen(theme().ink);
    painter.drawText(QRect(x + kMark, 0, width() - x - kMark, 21), Qt::AlignLeft | Qt::AlignVCenter,
                     kSetNames[i]);
    x += legend_step(kSetNames[i]);
  }
}

// ---- OverlapMap ---

OverlapMap::OverlapMap(Document& document, QWidget* parent) : QWidget(parent), document_(document) {
  setFocusPolicy(Qt::StrongFocus);
  setMinimumSize(210, 70);
  setAccessibleName("Overlap by layer and head");
}

void OverlapMap::show(KeptSetsPtr sets, const TraceInfo& trace, bool choosable) {
  sets_ = std::move(sets);
  layer_ids_ = trace.layer_ids;
  choosable_ = choosable;
  update();
}

QSize OverlapMap::sizeHint() const {
  const int layers = sets_ == nullptr ? 1 : sets_->layers;
  return {minimumWidth(), fontMetrics().height() + 10 + layers * kHighest};
}

void OverlapMap::paintEvent(QPaintEvent* /*event*/) {
  QPainter painter(this);
  if (!sets_) return;
  const QFontMetrics metrics = fontMetrics();
  painter.setPen(theme().ink);
  painter.drawText(QRect(10, 0, width() - 10, metrics.height() + 2), Qt::AlignLeft,
                   "Jaccard overlap, layers x heads");
  for (int l = 0; l < sets_->layers; ++l) {
    for (int h = 0; h < sets_->heads; ++h) {
      const QRectF box = cell(l, h);
      const double overlap = sets_->at(l, h).jaccard();
      painter.fillRect(box, map_colour(overlap));
      const QString text = QString::number(overlap, 'f', 2);
      if (metrics.horizontalAdvance(text) + 4 < box.width() && metrics.height() <= box.height()) {
        painter.setPen(text_on(map_colour(overlap)));
        painter.drawText(box, Qt::AlignCenter, text);
      }
      const bool in = choosable_ && sets_->scope.layer >= 0 && sets_->scope.holds(l, h);
      if (in) {
        painter.setPen(QPen(theme().ink, 2));
        painter.drawRect(box.adjusted(1, 1, -2, -2));
      }
    }
    const QRectF first = cell(l, 0);
    if (first.height() < metrics.height() - 3) continue;
    painter.setPen(theme().faint);
    painter.drawText(QRectF(10, first.top(), kNames - 6, first.height()),
                     Qt::AlignRight | Qt::AlignVCenter,
                     QString::number(layer_ids_[static_cast<std::size_t>(l)]));
  }
}

void OverlapMap::mousePressEvent(QMouseEvent* event) {
  if (!sets_ || !choosable_) return;
  for (int l = 0; l < sets_->layers; ++l) {
    for (int h = 0; h < sets_->heads; ++h) {
      if (cell(l, h).contains(event->pos())) choose(l, h);
    }
  }
}

void OverlapMap::keyPressEvent(QKeyEvent* event) {
  const Focus focus = document_.focus();
  const int l = std::max(0, focus.layer);
  const int h = std::max(0, focus.head);
  if (!sets_ || !choosable_) return QWidget::keyPressEvent(event);
  switch (event->key()) {
    case Qt::Key_Left:
      return choose(l, std::max(0, h - 1));
    case Qt::Key_Right:
      return choose(l, h + 1);
    case Qt::Key_Up:
      return choose(std::max(0, l - 1), h);
    case Qt::Key_Down:
      return choose(l + 1, h);
    case Qt::Key_Escape:
      return choose(-1, -1);
    default:
      QWidget::keyPressEvent(event);
  }
}

bool OverlapMap::event(QEvent* event) {
  if (event->type() == QEvent::ToolTip && sets_) {
    const auto* help = static_cast<QHelpEvent*>(event);
    for (int l = 0; l < sets_->layers; ++l) {
      for (int h = 0; h < sets_->heads; ++h) {
        if (!cell(l, h).contains(help->pos())) continue;
        const Overlap& at = sets_->at(l, h);
        QToolTip::showText(
            help->globalPos(),
            QString("layer %1, head %2: both %3, only current %4, only baseline %5")
                .arg(layer_ids_[static_cast<std::size_t>(l)])
                .arg(h)
                .arg(count_text(at.both), count_text(at.current), count_text(at.baseline)),
            this);
        return true;
      }
    }
  }
  return QWidget::event(event);
}

QRectF OverlapMap::cell(int layer, int head) const {
  const double top = fontMetrics().height() + 6;
  const double wide = std::min(90.0, (width() - 10.0 - kNames - 8) / sets_->heads);
  const double high = std::min<double>(kHighest, (height() - top - 4) / sets_->layers);
  return {10 + kNames + head * wide, top + layer * high, wide - 1, high - 1};
}

void OverlapMap::choose(int layer, int head) {
  Focus focus = document_.focus();
  focus.layer = layer;
  focus.head = head;
  document_.set_focus(focus);
}

}  // namespace kvspan::gui
