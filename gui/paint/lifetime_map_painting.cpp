// SPDX-License-Identifier: Apache-2.0
// What the map of lifetimes draws.
#include <QLinearGradient>
#include <algorithm>
#include <cmath>

#include "gui/paint/lifetime_map.h"
#include "gui/paint/theme.h"
#include "sim/base/error.h"

namespace kvspan::gui {

namespace {

constexpr double kLeastApart = 8;  // pixels between lines of passes

// Round numbers in [begin, end), at most about `most`.
std::vector<RowIndex> round_rows(Rows range, int most) {
  RowIndex step = 1;
  while (range.size() / step > most) {
    RowIndex power = 1;
    while (power * 10 <= step) power *= 10;
    step = step / power == 1 ? 2 * power : step / power == 2 ? 5 * power : 10 * power;
  }
  std::vector<RowIndex> out;
  for (RowIndex at = (range.begin + step - 1) / step * step; at < range.end; at += step) {
    out.push_back(at);
  }
  return out;
}

}  // namespace

void LifetimeMap::draw(QPainter& painter, const QSize& size, double scale) {
  if (!which_) {
    paint_sentence(painter, QRect(QPoint(), size), empty_);
    return;
  }
  const QRect legend(10, 6, size.width() - 20, kLegendHeight);
  QFont bold = font();
  bold.setBold(true);
  painter.setFont(bold);
  painter.setPen(theme().ink);
  const QFontMetrics metrics(bold);
  const QString name = metrics.elidedText(title(), Qt::ElideMiddle, legend.width() / 2);
  painter.drawText(legend, Qt::AlignLeft | Qt::AlignVCenter, name);
  painter.setFont(font());
  paint_legend(painter, legend.adjusted(metrics.horizontalAdvance(name) + 24, 0, 0, 0));
  const QRect rest(0, legend.bottom() + 4, size.width(), size.height() - legend.bottom() - 4);
  if (const auto frame = frame_for(map_rect(rest), scale)) {
    try {
      picture_ = make_life_picture(*which_, *frame, shown_attention(), life_colours(), {});
    } catch (const Error& error) {
      error_ = QString::fromUtf8(error.what());
    }
  }
  paint(painter, rest, false);
}

QString LifetimeMap::title() const {
  if (!which_) return {};
  return QString("%1, %2, head %3")
      .arg(QString::fromStdString(run().label), layer_label(which_->result->trace, which_->layer))
      .arg(which_->head);
}

void LifetimeMap::paint_legend(QPainter& painter, const QRect& area) const {
  if (!which_) return;
  const LifeColours c = life_colours();
  struct Item {
    QString text;
    QColor from, to;
    int width;
  };
  std::vector<Item> items;
  if (shown_attention()) {
    items.push_back({"attention on what is held", c.faint_held, c.strong_held, 54});
    items.push_back({"attention lost with what was evicted", c.evicted, c.lost, 54});
  } else if (knows_reads()) {
    items.push_back({"held and read", c.read, c.read, 12});
    items.push_back({"held, not read", c.held, c.held, 12});
    items.push_back({"evicted", c.evicted, c.evicted, 12});
  } else {
    items.push_back(
        {file_run().has_selected ? "held" : "held, read by every row", c.read, c.read, 12});
    items.push_back({"evicted", c.evicted, c.evicted, 12});
  }
  QString note;
  if (shown_attention()) {
    note = "0.03 % to 100 %";
    if (attention_->sampled) {
      note += QString(", %1 rows sampled")
                  .arg(count_text(static_cast<std::int64_t>(attention_->rows.size())));
    }
  } else if (file_run().has_selected && !knows_reads()) {
    note = "which were read is not in the file";
  } else if (knows_reads() &&
             static_cast<RowIndex>(file_run().read_rows.size()) < which_->result->trace.tokens) {
    note = QString("reads of %1 rows, each until the next")
               .arg(count_text(static_cast<std::int64_t>(file_run().read_rows.size())));
  }
  const QFontMetrics metrics(painter.font());
  int width = note.isEmpty() ? 0 : metrics.horizontalAdvance(note);
  for (const Item& item : items) {
    width += item.width + 6 + metrics.horizontalAdvance(item.text) + 16;
  }
  int x = std::max(area.left(), area.right() - width);
  for (const Item& item : items) {
    QLinearGradient fill(x, 0, x + item.width, 0);
    fill.setColorAt(0, item.from);
    fill.setColorAt(1, item.to);
    painter.fillRect(QRect(x, area.center().y() - 5, item.width, 11), fill);
    x += item.width + 6;
    painter.setPen(theme().ink);
    painter.drawText(QRect(x, area.top(), area.right() - x + 1, area.height()),
                     Qt::AlignLeft | Qt::AlignVCenter, item.text);
    x += metrics.horizontalAdvance(item.text) + 16;
  }
  painter.setPen(theme().faint);
  painter.drawText(QRect(x, area.top(), std::max(0, area.right() - x + 1), area.height()),
                   Qt::AlignLeft | Qt::AlignVCenter,
                   metrics.elidedText(note, Qt::ElideRight, std::max(0, area.right() - x + 1)));
}

void LifetimeMap::paintEvent(QPaintEvent* /*event*/) {
  QPainter painter(this);
  painter.fillRect(rect(), theme().paper);
  paint(painter, rect(), true);
}

QRect LifetimeMap::map_rect(const QRect& area) const {
  const int left = QFontMetrics(font()).horizontalAdvance("0 000 000") + 26;
  return area.adjusted(left, spans() == nullptr ? 6 : 20, -26, -36);
}

std::optional<LifeFrame> LifetimeMap::frame_for(const QRect& map, double scale) const {
  if (rows().empty() || tokens_.empty() || map.width() < 2 || map.height() < 2) {
    return std::nullopt;
  }
  const auto cells = [&](int pixels, RowIndex size) {
    return static_cast<int>(std::min<RowIndex>(std::lround(pixels * scale), size));
  };
  return LifeFrame{rows(), tokens_, cells(map.width(), tokens_.size()),
                   cells(map.height(), rows().size())};
}

void LifetimeMap::paint_sentence(QPainter& painter, const QRect& area, const QString& text) const {
  painter.setPen(theme().faint);
  painter.drawText(area.adjusted(20, 10, -20, -10), Qt::AlignCenter | Qt::TextWordWrap, text);
}

void LifetimeMap::paint(QPainter& painter, const QRect& area, bool interactive) {
  const QRect map = map_rect(area);
  if (!which_ || !error_.isEmpty() || rows().empty()) {
    paint_sentence(painter, area,
                   !which_             ? empty_
                   : !error_.isEmpty() ? error_
                                       : QString("This run ends before the rows that are shown."));
    return;
  }
  if (map.width() < 2 || map.height() < 2) return;
  const Place at{map, tokens_, rows()};
  painter.save();
  painter.setClipRect(map);
  painter.fillRect(map, life_colours().unborn);
  if (picture_ && picture_->of == *which_) {
    const LifeFrame& frame = picture_->frame;
    const QRectF place(QPointF(at.x_of(static_cast<double>(frame.tokens.begin)),
                               at.y_of(static_cast<double>(frame.rows.begin))),
                       QPointF(at.x_of(static_cast<double>(frame.tokens.end)),
                               at.y_of(static_cast<double>(frame.rows.end))));
    painter.setRenderHint(QPainter::SmoothPixmapTransform, false);
    painter.drawImage(place, picture_->image);
  }
  paint_marks(painter, at, interactive);
  painter.restore();
  paint_axes(painter, area, at);
  paint_spans(painter, at);
}

void LifetimeMap::paint_marks(QPainter& painter, const Place& at, bool interactive) const {
  const Result& result = *which_->result;
  painter.setRenderHint(QPainter::Antialiasing, false);
  QColor thin = theme().ink;
  thin.setAlpha(60);
  // Too many to be told apart: none.
  const Rows shown = rows();
  for (const RowIndex end :
       pass_ends(result, shown.begin, shown.end, kLeastApart / (at.y_of(1) - at.y_of(0)))) {
    if (end == result.trace.prompt) break;
    const double y = at.y_of(static_cast<double>(end));
    painter.setPen(QPen(thin, 1, Qt::DotLine));
    painter.drawLine(QPointF(at.map.left(), y), QPointF(at.map.right(), y));
  }
  if (result.trace.prompt < result.trace.tokens) {
    const double y = at.y_of(static_cast<double>(result.trace.prompt));
    painter.setPen(QPen(theme().ink, 1));
    painter.drawLine(QPointF(at.map.left(), y), QPointF(at.map.right(), y));
  }
  const Rows selected = document_.selection();
  const double top = at.y_of(static_cast<double>(selected.begin));
  const double bottom = at.y_of(static_cast<double>(selected.end));
  QColor band = theme().accent;
  band.setAlpha(30);
  if (selected.size() > 1) {
    painter.fillRect(QRectF(at.map.left(), top, at.map.width(), bottom - top), band);
    painter.setPen(QPen(theme().accent, 1));
    for (const double y : {top, bottom}) {
      painter.drawLine(QPointF(at.map.left(), y), QPointF(at.map.right(), y));
    }
  }
  const auto line = [&](const QPointF& from, const QPointF& to) {
    QColor halo = theme().paper;
    halo.setAlpha(150);
    painter.setPen(QPen(halo, 3));
    painter.drawLine(from, to);
    painter.setPen(QPen(mark_colour(), 1));
    painter.drawLine(from, to);
  };
  const double now = at.y_of(static_cast<double>(document_.instant()) + 0.5);
  line(QPointF(at.map.left(), now), QPointF(at.map.right(), now));
  if (const std::int64_t token = document_.focus().token; token >= 0) {
    const double x = at.x_of(static_cast<double>(token) + 0.5);
    line(QPointF(x, at.map.top()), QPointF(x, at.map.bottom()));
  }
  if (interactive && drag_) {
    painter.fillRect(drag_->normalized(), band);
    painter.setPen(QPen(theme().accent, 1));
    painter.drawRect(drag_->normalized());
  }
}

QColor LifetimeMap::mark_colour() { return theme().dark ? QColor("#ffd166") : QColor("#b5179e"); }

void LifetimeMap::paint_axes(QPainter& painter, const QRect& area, const Place& at) const {
  const QFontMetrics metrics(painter.font());
  const Result& result = *which_->result;
  painter.setPen(theme().faint);
  painter.drawRect(at.map.adjusted(0, 0, -1, -1));
  const int wide = metrics.horizontalAdvance("0 000 000") + 16;
  for (const RowIndex token : round_rows(tokens_, std::max(1, at.map.width() / wide))) {
    const auto x = static_cast<int>(at.x_of(static_cast<double>(token) + 0.5));
    painter.setPen(theme().faint);
    painter.drawLine(x, at.map.bottom() + 1, x, at.map.bottom() + 4);
    painter.drawText(QRect(x - wide / 2, at.map.bottom() + 5, wide, metrics.height()),
                     Qt::AlignHCenter | Qt::AlignTop, count_text(token));
  }
  for (const RowIndex row :
       round_rows(rows(), std::max(1, at.map.height() / (2 * metrics.height())))) {
    const auto y = static_cast<int>(at.y_of(static_cast<double>(row) + 0.5));
    painter.drawLine(at.map.left() - 4, y, at.map.left() - 1, y);
    painter.drawText(QRect(area.left(), y - metrics.height(), at.map.left() - area.left() - 6,
                           2 * metrics.height()),
                     Qt::AlignRight | Qt::AlignVCenter, count_text(row));
  }
  painter.setPen(theme().ink);
  painter.drawText(
      QRect(at.map.left(), area.bottom() - metrics.height(), at.map.width(), metrics.height()),
      Qt::AlignHCenter | Qt::AlignBottom, "token");
  const auto sideways = [&](double x, double from, double to, const QString& text) {
    if (to - from < metrics.horizontalAdvance(text)) return;
    painter.save();
    painter.translate(x, (from + to) / 2);
    painter.rotate(-90);
    painter.drawText(QRectF(-(to - from) / 2, -metrics.height() / 2.0, to - from, metrics.height()),
                     Qt::AlignCenter, text);
    painter.restore();
  };
  sideways(area.left() + 3 + metrics.height() / 2.0, at.map.top(), at.map.bottom(), "row");
  painter.setPen(theme().faint);
  const double right = at.map.right() + 5 + metrics.height() / 2.0;
  const double turn =
      std::clamp(at.y_of(static_cast<double>(result.trace.prompt)),
                 static_cast<double>(at.map.top()), static_cast<double>(at.map.bottom()));
  sideways(right, at.map.top(), turn, "prefill");
  sideways(right, turn, at.map.bottom(), "decode");
}

void LifetimeMap::paint_spans(QPainter& painter, const Place& at) const {
  if (spans() == nullptr) return;
  const QFontMetrics metrics(painter.font());
  double free = at.map.left();
  for (const Span& span : *spans()) {
    const double from = std::max<double>(at.map.left(), at.x_of(static_cast<double>(span.begin)));
    const double to = std::min<double>(at.map.right() + 1, at.x_of(static_cast<double>(span.end)));
    if (to <= at.map.left() || from >= at.map.right()) continue;
    painter.fillRect(QRectF(from, at.map.top() - 5, std::max(2.0, to - from), 4), theme().ink);
    const QString name = QString::fromStdString(span.name);
    const double width = metrics.horizontalAdvance(name);
    const double x = std::clamp((from + to - width) / 2, static_cast<double>(at.map.left()),
                                at.map.right() - width);
    if (x < free) continue;  // names do not overlap
    painter.setPen(theme().ink);
    painter.drawText(QPointF(x, at.map.top() - 7), name);
    free = x + width + 6;
  }
}

}  // namespace kvspan::gui
