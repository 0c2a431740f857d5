// SPDX-License-Identifier: Apache-2.0
// What mouse and keys do in the map of lifetimes, and what it says of a token.
#include <QHelpEvent>
#include <QKeyEvent>
#include <QMouseEvent>
#include <QTextDocument>
#include <QToolTip>
#include <QWheelEvent>
#include <algorithm>
#include <cmath>

#include "gui/model/numbers.h"
#include "gui/paint/lifetime_map.h"
#include "sim/base/error.h"

namespace kvspan::gui {

void LifetimeMap::fit() {
  if (which_) set_tokens({0, which_->result->trace.tokens});
  document_.zoom_out();
}

void LifetimeMap::zoom(double factor, double x, double y, bool only_rows, bool only_tokens) {
  if (!which_) return;
  const auto around = [&](Rows range, double at) {
    const auto size = static_cast<double>(range.size());
    const auto now = std::max<RowIndex>(8, std::llround(size * factor));
    const RowIndex fixed = range.begin + static_cast<RowIndex>(at * size);
    const RowIndex begin = fixed - static_cast<RowIndex>(at * static_cast<double>(now));
    return Rows{begin, begin + now};
  };
  if (!only_rows) set_tokens(around(tokens_, x));
  if (!only_tokens) document_.set_zoom(around(rows(), y));
}

void LifetimeMap::set_tokens(Rows tokens) {
  const RowIndex all = which_ ? which_->result->trace.tokens : 0;
  const RowIndex size = std::clamp<RowIndex>(tokens.size(), std::min<RowIndex>(8, all), all);
  const RowIndex begin = std::clamp<RowIndex>(tokens.begin, 0, all - size);
  const Rows before = tokens_;
  tokens_ = {begin, begin + size};
  request();
  if (moved && !(tokens_ == before)) moved();
}

std::optional<std::pair<std::int64_t, RowIndex>> LifetimeMap::under(const QPoint& point) const {
  const QRect map = map_rect(rect());
  if (!which_ || !map.contains(point) || rows().empty()) return std::nullopt;
  const auto place = [](Rows range, int at, int size) {
    return range.begin +
           static_cast<RowIndex>((at + 0.5) * static_cast<double>(range.size()) / size);
  };
  return std::pair(place(tokens_, point.x() - map.left(), map.width()),
                   place(rows(), point.y() - map.top(), map.height()));
}

QString LifetimeMap::facts(std::int64_t token) const {
  if (!which_ || token < 0) return {};
  const RowIndex all = which_->result->trace.tokens;
  Life life;
  try {
    life = life_of(*which_->result->lifetimes, static_cast<int>(which_->run), which_->layer,
                   which_->head, token, attention_.get());
  } catch (const Error& error) {
    return QString::fromUtf8(error.what());
  }
  QStringList parts;
  const QString text = token_label(trace_.get(), token);
  parts << QString("token %1").arg(count_text(token)) +
               (text.isEmpty() ? "" : QString(" ") + QChar(0x201c) + text + QChar(0x201d));
  parts << QString("born in row %1").arg(count_text(token));
  parts << (life.death >= all ? QString("never evicted")
                              : QString("evicted at row %1").arg(count_text(life.death)));
  parts << QString("lives %1 rows").arg(count_text(life.death - token));
  const auto mass = [](float value) { return QString::number(static_cast<double>(value), 'g', 3); };
  if (!std::isnan(life.received)) {
    parts << QString("attention received %1, lost %2 (summed over rows)")
                 .arg(mass(life.received), mass(life.lost));
  } else if (!wants_attention_) {
    parts << "A computes the attention it received";
  }
  QStringList eviction;
  if (!std::isnan(life.score)) eviction << "score " + mass(life.score);
  if (life.rank >= 0) eviction << "rank " + count_text(life.rank);
  if (!eviction.isEmpty()) parts << eviction.join(", ") + " when it went";
  return parts.join(QString(" ") + QChar(0xb7) + " ");
}

void LifetimeMap::resizeEvent(QResizeEvent* /*event*/) { request(); }

void LifetimeMap::showEvent(QShowEvent* /*event*/) {
  if (wants_attention_ && !attention_) start_attention();
  request();
  notify();
}

void LifetimeMap::changeEvent(QEvent* event) {
  if (event->type() == QEvent::PaletteChange) request();
  QWidget::changeEvent(event);
}

bool LifetimeMap::event(QEvent* event) {
  if (event->type() == QEvent::ToolTip) {
    const auto* help = static_cast<QHelpEvent*>(event);
    const auto at = under(help->pos());
    if (at && at->first <= at->second) {
      const QString text = facts(at->first).replace(QString(" ") + QChar(0xb7) + " ", "\n");
      // A token may be "<s>", which is not meant as HTML.
      QToolTip::showText(help->globalPos(), Qt::convertFromPlainText(text), this);
    } else {
      QToolTip::hideText();
    }
    return true;
  }
  return QWidget::event(event);
}

void LifetimeMap::wheelEvent(QWheelEvent* event) {
  const QRect map = map_rect(rect());
  if (!which_ || event->angleDelta().isNull()) return;
  const QPointF at = event->position() - map.topLeft();
  const int turn = event->angleDelta().y() != 0 ? event->angleDelta().y() : event->angleDelta().x();
  zoom(std::pow(0.999, turn), std::clamp(at.x() / map.width(), 0.0, 1.0),
       std::clamp(at.y() / map.height(), 0.0, 1.0), event->modifiers() & Qt::ShiftModifier,
       event->modifiers() & Qt::ControlModifier);
  event->accept();
}

void LifetimeMap::mousePressEvent(QMouseEvent* event) {
  if (event->button() != Qt::LeftButton || !under(event->pos())) return;
  drag_ = QRect(event->pos(), event->pos());
}

void LifetimeMap::mouseMoveEvent(QMouseEvent* event) {
  if (!drag_) return;
  drag_->setBottomRight(event->pos());
  update();
}

void LifetimeMap::mouseReleaseEvent(QMouseEvent* event) {
  if (!drag_ || event->button() != Qt::LeftButton) return;
  const QRect box = drag_->normalized().intersected(map_rect(rect()));
  drag_.reset();
  update();
  const auto first = under(box.topLeft());
  const auto last = under(box.bottomRight());
  if (!first || !last) return;
  if (box.width() < 5 || box.height() < 5) {
    choose(first->first, first->second);
    return;
  }
  set_tokens({first->first, last->first + 1});
  document_.set_zoom({first->second, last->second + 1});
}

void LifetimeMap::keyPressEvent(QKeyEvent* event) {
  if (!which_) return QWidget::keyPressEvent(event);
  const std::int64_t token = document_.focus().token;
  const RowIndex row = document_.instant();
  const bool shift = event->modifiers() & Qt::ShiftModifier;
  const auto pan = [](Rows range, int way) {
    const RowIndex by = way * std::max<RowIndex>(1, range.size() / 8);
    return Rows{range.begin + by, range.end + by};
  };
  switch (event->key()) {
    case Qt::Key_Left:
    case Qt::Key_Right: {
      const int way = event->key() == Qt::Key_Left ? -1 : 1;
      if (shift) return set_tokens(pan(tokens_, way));
      return choose(token < 0 ? tokens_.begin : std::max<std::int64_t>(0, token + way), row);
    }
    case Qt::Key_Up:
    case Qt::Key_Down: {
      const int way = event->key() == Qt::Key_Up ? -1 : 1;
      if (shift) return document_.set_zoom(pan(rows(), way));
      return choose(token, row + way);
    }
    case Qt::Key_PageUp:
      return turn_head(shift ? -run().heads : -1);
    case Qt::Key_PageDown:
      return turn_head(shift ? run().heads : 1);
    case Qt::Key_Plus:
    case Qt::Key_Equal:
    case Qt::Key_Minus: {
      const auto place = [](Rows range, std::int64_t at) {
        const double share =
            static_cast<double>(at - range.begin) / static_cast<double>(range.size());
        return share >= 0 && share <= 1 ? share : 0.5;
      };
      return zoom(event->key() == Qt::Key_Minus ? 1.25 : 0.8, place(tokens_, token),
                  place(rows(), row));
    }
    case Qt::Key_Home:
      return fit();
    case Qt::Key_A:
      return set_attention(!wants_attention_);
    case Qt::Key_Escape:
      if (attention_work_.busy()) return set_attention(false);
      break;
    default:
      break;
  }
  QWidget::keyPressEvent(event);
}

void LifetimeMap::choose(std::int64_t token, RowIndex row) {
  document_.set_selection({row, row + 1});
  Focus focus{which_->layer, which_->head, token};
  document_.set_focus(focus);
}

void LifetimeMap::turn_head(int by) {
  const int heads = run().heads;
  const int last = which_->result->trace.layers() * heads - 1;
  const int now = std::clamp(which_->layer * heads + which_->head + by, 0, last);
  Focus focus = document_.focus();
  focus.layer = now / heads;
  focus.head = now % heads;
  document_.set_focus(focus);
}

}  // namespace kvspan::gui
