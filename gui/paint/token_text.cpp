// SPDX-License-Identifier: Apache-2.0
#include "gui/paint/token_text.h"

#include <QHelpEvent>
#include <QKeyEvent>
#include <QMouseEvent>
#include <QPainter>
#include <QScrollBar>
#include <QTextDocument>
#include <QToolTip>
#include <algorithm>
#include <utility>

#include "gui/model/lives.h"
#include "gui/paint/theme.h"

namespace kvspan::gui {
namespace {

constexpr int kMargin = 8;
constexpr int kSquare = 9;  // of a token without text

// Nothing held is paper; the least that is held can be told from it.
QColor share_colour(double share) {
  return share <= 0 ? theme().paper : mix(theme().paper, held_colour(), 0.14 + 0.86 * share);
}

}  // namespace

TokenText::TokenText(QWidget* parent) : QAbstractScrollArea(parent) {
  setFocusPolicy(Qt::StrongFocus);
  setFrameShape(QFrame::NoFrame);
  setVerticalScrollBarPolicy(Qt::ScrollBarAlwaysOn);
  setHorizontalScrollBarPolicy(Qt::ScrollBarAlwaysOff);
  viewport()->setMouseTracking(true);
  setAccessibleName("The text, by how many heads hold each token");
}

void TokenText::show(std::shared_ptr<const Trace> trace, std::int64_t tokens,
                     std::vector<float> shares) {
  const bool same = trace == trace_ && tokens == tokens_;
  trace_ = std::move(trace);
  tokens_ = tokens;
  shares_ = std::move(shares);
  if (!same) {
    arranged_ = -1;
    arrange();
    set_token(std::min(token_, tokens_ - 1));
  }
  viewport()->update();
}

void TokenText::set_token(std::int64_t token) {
  token_ = token;
  viewport()->update();
  if (token < 0 || starts_.empty()) return;
  const auto line = static_cast<int>(std::upper_bound(starts_.begin(), starts_.end(), token) -
                                     starts_.begin() - 1);
  const int seen = std::max(1, viewport()->height() / line_height());
  const int top = verticalScrollBar()->value();
  if (line >= top && line < top + seen) return;
  verticalScrollBar()->setValue(line - seen / 2);
}

QString TokenText::label(std::int64_t token) const { return token_label(trace_.get(), token); }

int TokenText::width_of(std::int64_t token) const {
  const std::string_view text = trace_ == nullptr ? "" : trace_->token_text(token);
  int width = 1;
  for (const char c : text) {
    if (c < ' ' || c > '~') return fontMetrics().horizontalAdvance(label(token)) + 1;
    width += ascii_[static_cast<std::size_t>(c)];
  }
  return text.empty() ? kSquare : width;
}

bool TokenText::breaks_after(std::int64_t token) const {
  // At the end of a paragraph: single line breaks are those of a page that was wider or narrower.
  const auto breaks = [&](std::int64_t t) {
    if (t < 0) return std::ptrdiff_t{0};
    const std::string_view text = trace_->token_text(t);
    return std::count(text.begin(), text.end(), '\n');
  };
  if (trace_ == nullptr || breaks(token) == 0) return false;
  return breaks(token) + breaks(token - 1) > 1;
}

bool TokenText::begins_word(std::int64_t token) const {
  const std::string_view text = trace_ == nullptr ? "" : trace_->token_text(token);
  return text.empty() || text[0] == ' ' || text[0] == '\n';
}

std::vector<std::int64_t> TokenText::lines(int width) const {
  std::vector<std::int64_t> starts;
  int x = 0;
  bool fresh = true;
  std::int64_t word = 0;  // the last token of the line that begins a word, and where it stands
  int word_x = 0;
  for (std::int64_t t = 0; t < tokens_; ++t) {
    const int wide = width_of(t);
    if (!fresh && begins_word(t)) {
      word = t;
      word_x = x;
    }
    if (fresh || x + wide > width) {
      const bool whole_word = !fresh && word > starts.back();
      starts.push_back(whole_word ? word : t);
      x = whole_word ? x - word_x : 0;
      word = starts.back();
      word_x = 0;
    }
    x += wide;
    fresh = breaks_after(t);
  }
  return starts;
}

void TokenText::measure() {
  ascii_.assign(128, 0);
  for (char c = ' '; c <= '~'; ++c) {
    ascii_[static_cast<std::size_t>(c)] = fontMetrics().horizontalAdvance(QChar::fromLatin1(c));
  }
}

int TokenText::height_for(int width) {
  if (ascii_.empty()) measure();
  return static_cast<int>(lines(width).size()) * line_height();
}

void TokenText::arrange() {
  const int width = viewport()->width() - 2 * kMargin;
  if (width == arranged_ || width < 20) return;
  arranged_ = width;
  measure();
  starts_ = lines(width);
  const int seen = viewport()->height() / line_height();
  verticalScrollBar()->setPageStep(seen);
  verticalScrollBar()->setRange(0, std::max(0, static_cast<int>(starts_.size()) - seen));
}

void TokenText::paint_line(QPainter& painter, const QPoint& at, int width, std::int64_t begin,
                           std::int64_t end) const {
  const int height = line_height();
  int x = at.x();
  for (std::int64_t t = begin; t < end; ++t) {
    const QRect box(x, at.y(), std::min(width_of(t), at.x() + width - x), height);
    x += box.width();
    const bool born = t < static_cast<std::int64_t>(shares_.size());
    const auto share = born ? static_cast<double>(shares_[static_cast<std::size_t>(t)]) : 0.0;
    const QColor back = share_colour(share);
    const QString text = label(t);
    const QRect fill = box.adjusted(0, 1, text.isEmpty() ? -1 : 0, -1);
    if (share > 0) painter.fillRect(fill, back);
    if (share <= 0 && born && text.isEmpty()) painter.fillRect(fill, theme().unresident);
    painter.setPen(share > 0 ? text_on(back)
                   : born    ? theme().faint
                             : mix(theme().faint, theme().paper, 0.6));
    painter.drawText(box, Qt::AlignLeft | Qt::AlignVCenter | Qt::TextSingleLine, text);
    if (t != token_) continue;
    painter.setPen(QPen(theme().ink, 2));
    painter.drawRect(box.adjusted(0, 1, -1, -2));
  }
}

void TokenText::paintEvent(QPaintEvent* /*event*/) {
  QPainter painter(viewport());
  painter.fillRect(viewport()->rect(), theme().paper);
  const int top = verticalScrollBar()->value();
  const int seen = viewport()->height() / line_height() + 1;
  for (int i = 0; i < seen && top + i < static_cast<int>(starts_.size()); ++i) {
    const auto line = static_cast<std::size_t>(std::int64_t{top} + i);
    paint_line(painter, {kMargin, 2 + i * line_height()}, viewport()->width() - 2 * kMargin,
               starts_[line], line + 1 < starts_.size() ? starts_[line + 1] : tokens_);
  }
}

void TokenText::draw(QPainter& painter, const QRect& area) {
  if (ascii_.empty()) measure();
  const std::vector<std::int64_t> starts = lines(area.width());
  const auto seen = static_cast<std::int64_t>(area.height() / line_height());
  const auto all = static_cast<std::int64_t>(starts.size());
  const std::int64_t line =
      std::upper_bound(starts.begin(), starts.end(), std::max<std::int64_t>(token_, 0)) -
      starts.begin() - 1;
  const std::int64_t top =
      std::clamp<std::int64_t>(line - seen / 2, 0, std::max<std::int64_t>(0, all - seen));
  for (std::int64_t i = 0; i < seen && top + i < all; ++i) {
    const auto at = static_cast<std::size_t>(std::int64_t{top} + i);
    paint_line(painter, {area.left(), area.top() + static_cast<int>(i) * line_height()},
               area.width(), starts[at], at + 1 < starts.size() ? starts[at + 1] : tokens_);
  }
}

void TokenText::resizeEvent(QResizeEvent* /*event*/) {
  const std::int64_t first =
      starts_.empty() ? 0 : starts_[static_cast<std::size_t>(verticalScrollBar()->value())];
  arrange();
  const auto line = std::upper_bound(starts_.begin(), starts_.end(), first) - starts_.begin() - 1;
  const int seen = viewport()->height() / line_height();
  verticalScrollBar()->setPageStep(seen);
  verticalScrollBar()->setRange(0, std::max(0, static_cast<int>(starts_.size()) - seen));
  verticalScrollBar()->setValue(static_cast<int>(line));
}

void TokenText::changeEvent(QEvent* event) {
  if (event->type() == QEvent::FontChange) {
    arranged_ = -1;
    arrange();
  }
  if (event->type() == QEvent::PaletteChange) viewport()->update();
  QAbstractScrollArea::changeEvent(event);
}

std::int64_t TokenText::token_at(const QPoint& point) const {
  const int line = verticalScrollBar()->value() + (point.y() - 2) / line_height();
  if (point.y() < 2 || line >= static_cast<int>(starts_.size())) return -1;
  const auto at = static_cast<std::size_t>(line);
  const std::int64_t end = at + 1 < starts_.size() ? starts_[at + 1] : tokens_;
  int x = kMargin;
  for (std::int64_t t = starts_[at]; t < end; ++t) {
    const int wide = width_of(t);
    if (point.x() >= x && point.x() < x + wide) return t;
    x += wide;
  }
  return -1;
}

void TokenText::keyPressEvent(QKeyEvent* event) {
  const auto go = [&](std::int64_t token) {
    if (tokens_ > 0 && chosen) chosen(std::clamp<std::int64_t>(token, 0, tokens_ - 1));
  };
  const auto line = std::upper_bound(starts_.begin(), starts_.end(), token_) - starts_.begin();
  switch (event->key()) {
    case Qt::Key_Left:
      return go(token_ - 1);
    case Qt::Key_Right:
      return go(token_ + 1);
    case Qt::Key_Up:
      return go(line >= 2 ? starts_[static_cast<std::size_t>(line - 2)] : 0);
    case Qt::Key_Down:
      return go(line < static_cast<std::ptrdiff_t>(starts_.size())
                    ? starts_[static_cast<std::size_t>(line)]
                    : token_);
    case Qt::Key_Home:
      return go(0);
    case Qt::Key_End:
      return go(tokens_ - 1);
    default:
      QAbstractScrollArea::keyPressEvent(event);  // Page Up, Page Down scroll
  }
}

void TokenText::mousePressEvent(QMouseEvent* event) {
  const std::int64_t token = token_at(event->pos());
  if (token >= 0 && chosen) chosen(token);
}

bool TokenText::viewportEvent(QEvent* event) {
  if (event->type() == QEvent::ToolTip) {
    const auto* help = static_cast<QHelpEvent*>(event);
    const std::int64_t token = token_at(help->pos());
    if (token >= 0 && tip) {
      // A token may be "<s>", which is not meant as HTML.
      QToolTip::showText(help->globalPos(), Qt::convertFromPlainText(tip(token)), this);
    } else {
      QToolTip::hideText();
    }
    return true;
  }
  return QAbstractScrollArea::viewportEvent(event);
}

void paint_held_scale(QPainter& painter, const QRect& area, const QString& least,
                      const QString& most) {
  constexpr int kWidth = 60;
  const QFontMetrics metrics(painter.font());
  const int right = metrics.horizontalAdvance(most);
  const int left = metrics.horizontalAdvance(least);
  int x = std::max(area.left(), area.right() - right - left - kWidth - 12);
  painter.setPen(theme().ink);
  painter.drawText(QRect(x, area.top(), left, area.height()), Qt::AlignCenter, least);
  x += left + 6;
  QLinearGradient fill(x, 0, x + kWidth, 0);
  fill.setColorAt(0, theme().paper);
  fill.setColorAt(0.01, share_colour(0.01));
  fill.setColorAt(1, share_colour(1));
  const QRect box(x, area.center().y() - 5, kWidth, 11);
  painter.fillRect(box, fill);
  painter.setPen(theme().grid);
  painter.drawRect(box.adjusted(0, 0, -1, -1));
  painter.setPen(theme().ink);
  painter.drawText(QRect(x + kWidth + 6, area.top(), right, area.height()), Qt::AlignCenter, most);
}

}  // namespace kvspan::gui
