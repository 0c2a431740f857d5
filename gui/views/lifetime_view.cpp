// SPDX-License-Identifier: Apache-2.0
// Tokens to the right, rows downwards: what one head holds, reads and has lost, after Figure 1 of
// arXiv 2506.17121. The map is made beside the window at the size of its pixels; while the next one
// is made, the last one is shown where it belongs.
#include <QComboBox>
#include <QHBoxLayout>
#include <QHelpEvent>
#include <QKeyEvent>
#include <QLabel>
#include <QMouseEvent>
#include <QProgressBar>
#include <QToolButton>
#include <QToolTip>
#include <QVBoxLayout>
#include <QWheelEvent>
#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <utility>

#include "gui/model/background.h"
#include "gui/model/lives.h"
#include "gui/paint/theme.h"
#include "gui/views/view.h"
#include "sim/attention/head_attention.h"
#include "sim/base/error.h"
#include "sim/report/lifetimes_file.h"

namespace kvspan::gui {
namespace {

constexpr std::int64_t kAttentionGrid = 2048;  // cells an axis: 16 MiB
constexpr double kFaintest = 3.5;              // decades below 1 that attention is shown in
constexpr int kLegendHeight = 20;
constexpr double kLeastApart = 8;  // pixels between lines of passes

using Attention = std::shared_ptr<const HeadAttention>;

struct Colours {
  QColor unborn, read, held, evicted;    // without attention
  QColor faint_held, strong_held, lost;  // with it; nothing lost is `evicted`
};

Colours map_colours() {
  const Theme& t = theme();
  Colours c;
  c.unborn = t.paper;
  c.read = held_colour();
  c.held = mix(c.read, t.paper, 0.64);
  c.evicted = mix(t.unresident, t.ink, 0.06);
  c.faint_held = mix(c.read, t.paper, t.dark ? 0.72 : 0.78);
  c.strong_held = t.dark ? QColor("#e4f2fc") : QColor("#08213a");
  c.lost = t.bad;
  return c;
}

// 0 to 1 for a probability.
double strength(double probability) {
  return probability > 0 ? std::clamp(1 + std::log10(probability) / kFaintest, 0.0, 1.0) : 0.0;
}

// The largest attention of the cells of `attention` that a cell of the picture covers.
class AttentionCells {
 public:
  AttentionCells(const HeadAttention& attention, const LifeFrame& frame, RowIndex tokens)
      : attention_(&attention),
        columns_(places(frame.tokens, frame.width, tokens)),
        rows_(places(frame.rows, frame.height, tokens)) {}

  [[nodiscard]] double at(int x, int y) const {
    const auto [left, right] = columns_[static_cast<std::size_t>(x)];
    const auto [top, bottom] = rows_[static_cast<std::size_t>(y)];
    float most = 0;
    for (std::int64_t row = top; row < bottom; ++row) {
      for (std::int64_t column = left; column < right; ++column) {
        const float p = attention_->map[static_cast<std::size_t>(row * attention_->grid + column)];
        if (p > most) most = p;  // not for NaN
      }
    }
    return static_cast<double>(most);
  }

 private:
  using Range = std::pair<std::int64_t, std::int64_t>;
  [[nodiscard]] std::vector<Range> places(Rows shown, int cells, RowIndex tokens) const {
    std::vector<Range> out;
    for (std::int64_t i = 0; i < cells; ++i) {
      const RowIndex begin = shown.begin + i * shown.size() / cells;
      const RowIndex end = std::max(begin + 1, shown.begin + (i + 1) * shown.size() / cells);
      out.emplace_back(begin * attention_->grid / tokens,
                       (end - 1) * attention_->grid / tokens + 1);
    }
    return out;
  }
  const HeadAttention* attention_;
  std::vector<Range> columns_, rows_;
};

// Which head of which run.
struct Which {
  ResultPtr result;
  std::size_t run = 0;
  int layer = 0, head = 0;
  bool operator==(const Which&) const = default;
};

struct Picture {
  Which of;
  LifeFrame frame;
  QImage image;
};

Picture make_picture(const Which& of, const LifeFrame& frame, const Attention& attention,
                     const Colours& colours, const std::function<bool()>& cancelled) {
  const LifetimesFile& file = *of.result->lifetimes;
  const LifeMap map =
      map_lives(file, static_cast<int>(of.run), of.layer, of.head, frame, cancelled);
  std::optional<AttentionCells> cells;
  if (attention) cells.emplace(*attention, frame, file.tokens());
  Picture picture{of, frame, QImage(frame.width, frame.height, QImage::Format_RGB32)};
  for (int y = 0; y < frame.height; ++y) {
    if (cancelled && cancelled()) throw Interrupted();
    auto* line = reinterpret_cast<QRgb*>(picture.image.scanLine(y));
    for (int x = 0; x < frame.width; ++x) {
      const std::size_t i = static_cast<std::size_t>(y) * static_cast<std::size_t>(frame.width) +
                            static_cast<std::size_t>(x);
      const auto born = static_cast<double>(map.born[i]);
      const auto held = static_cast<double>(map.held[i]);
      const double read = map.read.empty() ? held : static_cast<double>(map.read[i]);
      if (born == 0) {
        line[x] = colours.unborn.rgb();
        continue;
      }
      const double a = cells ? strength(cells->at(x, y)) : 0;
      const QColor there = cells ? mix(colours.faint_held, colours.strong_held, a)
                                 : mix(colours.held, colours.read, held > 0 ? read / held : 0);
      const QColor gone = mix(colours.evicted, colours.lost, a);
      line[x] = mix(colours.unborn, mix(gone, there, held / born), born).rgb();
    }
  }
  return picture;
}

// Round numbers in [begin, end), at most about `most`.
std::vector<RowIndex> ticks(Rows range, int most) {
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

class MapCanvas final : public QWidget {
 public:
  MapCanvas(Document& document, QWidget* parent)
      : QWidget(parent),
        document_(document),
        map_work_(this),
        attention_work_(this),
        wants_attention_(document.display().attention) {
    setFocusPolicy(Qt::StrongFocus);
    setMouseTracking(true);
    setMinimumSize(300, 120);
    setAccessibleName("Map of tokens and rows");
    setAccessibleDescription("Left and right choose the token, up and down the row");
  }

  std::function<void()> changed;  // the head, what is known of it, or whether work goes on

  [[nodiscard]] const std::optional<Which>& shown() const { return which_; }
  [[nodiscard]] const Attention& attention() const { return attention_; }
  [[nodiscard]] bool wants_attention() const { return wants_attention_; }
  [[nodiscard]] bool is_busy() const { return attention_work_.busy(); }
  [[nodiscard]] bool is_ready() const { return !map_work_.busy() && !attention_work_.busy(); }
  [[nodiscard]] QString message() const { return message_; }  // why there is no attention
  [[nodiscard]] std::shared_ptr<const Trace> trace() const { return trace_; }

  // Takes over what the document shows now.
  void follow() {
    const ShownRun* run = document_.current_run();
    empty_ = why_no_lives(run);
    std::optional<Which> now;
    if (empty_.isEmpty()) {
      const Focus focus = document_.focus();
      now = Which{run->result, run->index, std::max(focus.layer, 0), std::max(focus.head, 0)};
    }
    if (now != which_) {
      if (!now || !which_ || now->result != which_->result) {
        tokens_ = {0, now ? now->result->trace.tokens : 0};
        trace_ = now ? document_.trace_of(*now->result) : nullptr;
      }
      which_ = now;
      if (!which_) picture_.reset();
      error_.clear();
      attention_.reset();
      attention_work_.cancel();
      message_.clear();
      if (wants_attention_) start_attention();
    }
    show_token();
    request();
    notify();
  }

  // Of the document: every map shows attention, or none.
  void set_attention(bool on) {
    Display display = document_.display();
    display.attention = on;
    document_.set_display(display);
  }
  void follow_display() {
    const bool on = document_.display().attention;
    if (on == wants_attention_) return;
    wants_attention_ = on;
    message_.clear();
    if (on && !attention_) start_attention();
    if (!on) attention_work_.cancel();
    request();
    notify();
  }

  // Asks for the map in the size and colours of now; what is not seen is not made.
  void request() {
    if (!isVisible()) return map_work_.cancel();
    update();
    const auto frame = which_ ? frame_for(map_rect(rect()), devicePixelRatioF()) : std::nullopt;
    if (!frame) {
      map_work_.cancel();
      return;
    }
    map_work_.run(
        [which = *which_, frame = *frame, attention = shown_attention(),
         colours = map_colours()](const auto& cancelled) {
          return make_picture(which, frame, attention, colours, cancelled);
        },
        [this](Picture picture) {
          picture_ = std::move(picture);
          error_.clear();
          update();
          notify();
        },
        [this](const QString& what) {
          error_ = what;
          update();
          notify();
        });
  }

  // Title, legend and map in `size`, made here and now.
  void draw(QPainter& painter, const QSize& size, double scale) {
    if (!which_) {
      paint_sentence(painter, QRect(QPoint(), size), empty_);
      return;
    }
    const QRect legend(10, 6, size.width() - 20, kLegendHeight);
    const QString title = QString("%1, %2, head %3")
                              .arg(QString::fromStdString(run().label),
                                   layer_label(which_->result->trace, which_->layer))
                              .arg(which_->head);
    QFont bold = font();
    bold.setBold(true);
    painter.setFont(bold);
    painter.setPen(theme().ink);
    painter.drawText(legend, Qt::AlignLeft | Qt::AlignVCenter, title);
    painter.setFont(font());
    paint_legend(painter,
                 legend.adjusted(QFontMetrics(bold).horizontalAdvance(title) + 24, 0, 0, 0));
    const QRect rest(0, legend.bottom() + 4, size.width(), size.height() - legend.bottom() - 4);
    if (const auto frame = frame_for(map_rect(rest), scale)) {
      try {
        picture_ = make_picture(*which_, *frame, shown_attention(), map_colours(), {});
      } catch (const Error& error) {
        error_ = QString::fromUtf8(error.what());
      }
    }
    paint(painter, rest, false);
  }

  // Right-aligned in `area`.
  void paint_legend(QPainter& painter, const QRect& area) const {
    if (!which_) return;
    const Colours c = map_colours();
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

  void fit() {
    if (which_) tokens_ = {0, which_->result->trace.tokens};
    document_.zoom_out();
    request();
  }
  // By `factor` of what is shown, where (x, y) in [0, 1] stays.
  void zoom(double factor, double x, double y, bool only_rows = false, bool only_tokens = false) {
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
  void set_tokens(Rows tokens) {
    const RowIndex all = which_ ? which_->result->trace.tokens : 0;
    const RowIndex size = std::clamp<RowIndex>(tokens.size(), std::min<RowIndex>(8, all), all);
    const RowIndex begin = std::clamp<RowIndex>(tokens.begin, 0, all - size);
    tokens_ = {begin, begin + size};
    request();
  }
  [[nodiscard]] Rows tokens() const { return tokens_; }
  // Rows that are shown: of the document's zoom, those of this trace.
  [[nodiscard]] Rows rows() const {
    const RowIndex all = which_ ? which_->result->trace.tokens : 0;
    const Rows zoomed = document_.zoom();
    return {std::min(zoomed.begin, all), std::min(zoomed.end, all)};
  }

  // The token under a point and its row; nullopt: not on the map.
  [[nodiscard]] std::optional<std::pair<std::int64_t, RowIndex>> under(const QPoint& point) const {
    const QRect map = map_rect(rect());
    if (!which_ || !map.contains(point) || rows().empty()) return std::nullopt;
    const auto place = [](Rows range, int at, int size) {
      return range.begin +
             static_cast<RowIndex>((at + 0.5) * static_cast<double>(range.size()) / size);
    };
    return std::pair(place(tokens_, point.x() - map.left(), map.width()),
                     place(rows(), point.y() - map.top(), map.height()));
  }

  // What is known of a token, on one line.
  [[nodiscard]] QString facts(std::int64_t token) const {
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
    const auto mass = [](float value) {
      return QString::number(static_cast<double>(value), 'g', 3);
    };
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

 protected:
  void paintEvent(QPaintEvent* /*event*/) override {
    QPainter painter(this);
    painter.fillRect(rect(), theme().paper);
    paint(painter, rect(), true);
  }
  void resizeEvent(QResizeEvent* /*event*/) override { request(); }
  void showEvent(QShowEvent* /*event*/) override {
    if (wants_attention_ && !attention_) start_attention();
    request();
    notify();
  }
  void changeEvent(QEvent* event) override {
    if (event->type() == QEvent::PaletteChange) request();
    QWidget::changeEvent(event);
  }
  bool event(QEvent* event) override {
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
  void wheelEvent(QWheelEvent* event) override {
    const QRect map = map_rect(rect());
    if (!which_ || event->angleDelta().isNull()) return;
    const QPointF at = event->position() - map.topLeft();
    const int turn =
        event->angleDelta().y() != 0 ? event->angleDelta().y() : event->angleDelta().x();
    zoom(std::pow(0.999, turn), std::clamp(at.x() / map.width(), 0.0, 1.0),
         std::clamp(at.y() / map.height(), 0.0, 1.0), event->modifiers() & Qt::ShiftModifier,
         event->modifiers() & Qt::ControlModifier);
    event->accept();
  }
  void mousePressEvent(QMouseEvent* event) override {
    if (event->button() != Qt::LeftButton || !under(event->pos())) return;
    drag_ = QRect(event->pos(), event->pos());
  }
  void mouseMoveEvent(QMouseEvent* event) override {
    if (!drag_) return;
    drag_->setBottomRight(event->pos());
    update();
  }
  void mouseReleaseEvent(QMouseEvent* event) override {
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
  void keyPressEvent(QKeyEvent* event) override {
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

 private:
  [[nodiscard]] const Run& run() const { return which_->result->runs[which_->run]; }
  [[nodiscard]] const LifetimesFile::Run& file_run() const {
    return which_->result->lifetimes->runs()[which_->run];
  }
  [[nodiscard]] bool knows_reads() const {
    return file_run().has_selected && !file_run().read_rows.empty();
  }
  [[nodiscard]] Attention shown_attention() const {
    return wants_attention_ ? attention_ : nullptr;
  }
  [[nodiscard]] const std::vector<Span>* spans() const {
    return trace_ == nullptr || trace_->meta().spans.empty() ? nullptr : &trace_->meta().spans;
  }

  [[nodiscard]] QRect map_rect(const QRect& area) const {
    const int left = QFontMetrics(font()).horizontalAdvance("0 000 000") + 26;
    return area.adjusted(left, spans() == nullptr ? 6 : 20, -26, -36);
  }
  [[nodiscard]] std::optional<LifeFrame> frame_for(const QRect& map, double scale) const {
    if (rows().empty() || tokens_.empty() || map.width() < 2 || map.height() < 2) {
      return std::nullopt;
    }
    const auto cells = [&](int pixels, RowIndex size) {
      return static_cast<int>(std::min<RowIndex>(std::lround(pixels * scale), size));
    };
    return LifeFrame{rows(), tokens_, cells(map.width(), tokens_.size()),
                     cells(map.height(), rows().size())};
  }

  void notify() {
    if (changed) changed();
  }
  void choose(std::int64_t token, RowIndex row) {
    document_.set_selection({row, row + 1});
    Focus focus{which_->layer, which_->head, token};
    document_.set_focus(focus);
  }
  void turn_head(int by) {
    const int heads = run().heads;
    const int last = which_->result->trace.layers() * heads - 1;
    const int now = std::clamp(which_->layer * heads + which_->head + by, 0, last);
    Focus focus = document_.focus();
    focus.layer = now / heads;
    focus.head = now % heads;
    document_.set_focus(focus);
  }
  // Moves what is shown so that the focused token is on it.
  void show_token() {
    const std::int64_t token = document_.focus().token;
    if (token < 0 || (token >= tokens_.begin && token < tokens_.end)) return;
    const RowIndex size = tokens_.size();
    set_tokens({token - size / 2, token - size / 2 + size});
  }

  void start_attention() {
    if (!which_ || !isVisible() || attention_work_.busy()) return;
    QString why;
    const auto trace = document_.trace_of(*which_->result, &why);
    const TraceMeta* meta = trace == nullptr ? nullptr : &trace->meta();
    const int heads = run().heads;
    if (meta != nullptr && heads != meta->kv_heads && heads != meta->query_heads) {
      why = QString("the run stores %1 heads, the trace has %2").arg(heads).arg(meta->kv_heads);
    }
    if (meta == nullptr || !why.isEmpty()) {
      message_ = "No attention: " + why;
      return;
    }
    attention_work_.run(
        [trace, which = *which_, heads](const auto& cancelled) {
          HeadAttentionOptions options;
          options.grid = kAttentionGrid;
          options.cancelled = cancelled;
          const auto deaths =
              which.result->lifetimes->deaths(static_cast<int>(which.run), which.layer, which.head);
          return attention_of_head(*trace, {which.layer, which.head, heads}, deaths, options);
        },
        [this](HeadAttention attention) {
          attention_ = std::make_shared<const HeadAttention>(std::move(attention));
          request();
          notify();
        },
        [this](const QString& what) {
          message_ = "No attention: " + what;
          notify();
        });
  }

  void paint_sentence(QPainter& painter, const QRect& area, const QString& text) const {
    painter.setPen(theme().faint);
    painter.drawText(area.adjusted(20, 10, -20, -10), Qt::AlignCenter | Qt::TextWordWrap, text);
  }

  void paint(QPainter& painter, const QRect& area, bool interactive) {
    const QRect map = map_rect(area);
    if (!which_ || !error_.isEmpty() || rows().empty()) {
      paint_sentence(painter, area,
                     !which_ ? empty_
                     : !error_.isEmpty()
                         ? error_
                         : QString("This run ends before the rows that are shown."));
      return;
    }
    if (map.width() < 2 || map.height() < 2) return;
    const auto x_of = [&](double token) {
      return map.left() + (token - static_cast<double>(tokens_.begin)) * map.width() /
                              static_cast<double>(tokens_.size());
    };
    const Rows shown = rows();
    const auto y_of = [&](double row) {
      return map.top() + (row - static_cast<double>(shown.begin)) * map.height() /
                             static_cast<double>(shown.size());
    };
    painter.save();
    painter.setClipRect(map);
    painter.fillRect(map, map_colours().unborn);
    if (picture_ && picture_->of == *which_) {
      const LifeFrame& frame = picture_->frame;
      const QRectF place(QPointF(x_of(static_cast<double>(frame.tokens.begin)),
                                 y_of(static_cast<double>(frame.rows.begin))),
                         QPointF(x_of(static_cast<double>(frame.tokens.end)),
                                 y_of(static_cast<double>(frame.rows.end))));
      painter.setRenderHint(QPainter::SmoothPixmapTransform, false);
      painter.drawImage(place, picture_->image);
    }
    paint_marks(painter, map, x_of, y_of, interactive);
    painter.restore();
    paint_axes(painter, area, map, x_of, y_of);
    paint_spans(painter, map, x_of);
  }

  template <class X, class Y>
  void paint_marks(QPainter& painter, const QRect& map, const X& x_of, const Y& y_of,
                   bool interactive) {
    const Result& result = *which_->result;
    painter.setRenderHint(QPainter::Antialiasing, false);
    QColor thin = theme().ink;
    thin.setAlpha(60);
    // Too many to be told apart: none.
    const Rows shown = rows();
    for (const RowIndex end :
         pass_ends(result, shown.begin, shown.end, kLeastApart / (y_of(1) - y_of(0)))) {
      if (end == result.trace.prompt) break;
      const double y = y_of(static_cast<double>(end));
      painter.setPen(QPen(thin, 1, Qt::DotLine));
      painter.drawLine(QPointF(map.left(), y), QPointF(map.right(), y));
    }
    if (result.trace.prompt < result.trace.tokens) {
      const double y = y_of(static_cast<double>(result.trace.prompt));
      painter.setPen(QPen(theme().ink, 1));
      painter.drawLine(QPointF(map.left(), y), QPointF(map.right(), y));
    }
    const Rows selected = document_.selection();
    const double top = y_of(static_cast<double>(selected.begin));
    const double bottom = y_of(static_cast<double>(selected.end));
    QColor band = theme().accent;
    band.setAlpha(30);
    if (selected.size() > 1) {
      painter.fillRect(QRectF(map.left(), top, map.width(), bottom - top), band);
      painter.setPen(QPen(theme().accent, 1));
      for (const double y : {top, bottom}) {
        painter.drawLine(QPointF(map.left(), y), QPointF(map.right(), y));
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
    const double now = y_of(static_cast<double>(document_.instant()) + 0.5);
    line(QPointF(map.left(), now), QPointF(map.right(), now));
    if (const std::int64_t token = document_.focus().token; token >= 0) {
      const double x = x_of(static_cast<double>(token) + 0.5);
      line(QPointF(x, map.top()), QPointF(x, map.bottom()));
    }
    if (interactive && drag_) {
      painter.fillRect(drag_->normalized(), band);
      painter.setPen(QPen(theme().accent, 1));
      painter.drawRect(drag_->normalized());
    }
  }
  [[nodiscard]] static QColor mark_colour() {
    return theme().dark ? QColor("#ffd166") : QColor("#b5179e");
  }

  template <class X, class Y>
  void paint_axes(QPainter& painter, const QRect& area, const QRect& map, const X& x_of,
                  const Y& y_of) {
    const QFontMetrics metrics(painter.font());
    const Result& result = *which_->result;
    painter.setPen(theme().faint);
    painter.drawRect(map.adjusted(0, 0, -1, -1));
    const int wide = metrics.horizontalAdvance("0 000 000") + 16;
    for (const RowIndex at : ticks(tokens_, std::max(1, map.width() / wide))) {
      const auto x = static_cast<int>(x_of(static_cast<double>(at) + 0.5));
      painter.setPen(theme().faint);
      painter.drawLine(x, map.bottom() + 1, x, map.bottom() + 4);
      painter.drawText(QRect(x - wide / 2, map.bottom() + 5, wide, metrics.height()),
                       Qt::AlignHCenter | Qt::AlignTop, count_text(at));
    }
    for (const RowIndex at : ticks(rows(), std::max(1, map.height() / (2 * metrics.height())))) {
      const auto y = static_cast<int>(y_of(static_cast<double>(at) + 0.5));
      painter.drawLine(map.left() - 4, y, map.left() - 1, y);
      painter.drawText(QRect(area.left(), y - metrics.height(), map.left() - area.left() - 6,
                             2 * metrics.height()),
                       Qt::AlignRight | Qt::AlignVCenter, count_text(at));
    }
    painter.setPen(theme().ink);
    painter.drawText(
        QRect(map.left(), area.bottom() - metrics.height(), map.width(), metrics.height()),
        Qt::AlignHCenter | Qt::AlignBottom, "token");
    const auto sideways = [&](double x, double from, double to, const QString& text) {
      if (to - from < metrics.horizontalAdvance(text)) return;
      painter.save();
      painter.translate(x, (from + to) / 2);
      painter.rotate(-90);
      painter.drawText(
          QRectF(-(to - from) / 2, -metrics.height() / 2.0, to - from, metrics.height()),
          Qt::AlignCenter, text);
      painter.restore();
    };
    sideways(area.left() + 3 + metrics.height() / 2.0, map.top(), map.bottom(), "row");
    painter.setPen(theme().faint);
    const double right = map.right() + 5 + metrics.height() / 2.0;
    const double turn =
        std::clamp(y_of(static_cast<double>(result.trace.prompt)), static_cast<double>(map.top()),
                   static_cast<double>(map.bottom()));
    sideways(right, map.top(), turn, "prefill");
    sideways(right, turn, map.bottom(), "decode");
  }

  template <class X>
  void paint_spans(QPainter& painter, const QRect& map, const X& x_of) {
    if (spans() == nullptr) return;
    const QFontMetrics metrics(painter.font());
    double free = map.left();
    for (const Span& span : *spans()) {
      const double from = std::max<double>(map.left(), x_of(static_cast<double>(span.begin)));
      const double to = std::min<double>(map.right() + 1, x_of(static_cast<double>(span.end)));
      if (to <= map.left() || from >= map.right()) continue;
      painter.fillRect(QRectF(from, map.top() - 5, std::max(2.0, to - from), 4), theme().ink);
      const QString name = QString::fromStdString(span.name);
      const double width = metrics.horizontalAdvance(name);
      const double x =
          std::clamp((from + to - width) / 2, static_cast<double>(map.left()), map.right() - width);
      if (x < free) continue;  // names do not overlap
      painter.setPen(theme().ink);
      painter.drawText(QPointF(x, map.top() - 7), name);
      free = x + width + 6;
    }
  }

  Document& document_;
  Background map_work_, attention_work_;
  std::optional<Which> which_;
  Rows tokens_;
  std::optional<Picture> picture_;
  Attention attention_;
  bool wants_attention_;
  QString empty_, error_, message_;
  std::shared_ptr<const Trace> trace_;  // or null
  std::optional<QRect> drag_;
};

// The legend of the window.
class Legend final : public QWidget {
 public:
  Legend(const MapCanvas& canvas, QWidget* parent) : QWidget(parent), canvas_(canvas) {
    setMinimumHeight(kLegendHeight);
  }

 protected:
  void paintEvent(QPaintEvent* /*event*/) override {
    QPainter painter(this);
    canvas_.paint_legend(painter, rect());
  }

 private:
  const MapCanvas& canvas_;
};

class LifetimeView final : public View {
  Q_OBJECT
 public:
  LifetimeView(Document& document, QWidget* parent) : View(document, parent) {
    layer_ = new QComboBox(this);
    layer_->setAccessibleName("Layer");
    head_ = new QComboBox(this);
    head_->setAccessibleName("Head");
    attention_ = new QToolButton(this);
    attention_->setText("Attention");
    attention_->setCheckable(true);
    attention_->setToolTip("Show the attention of this head, and what of it was lost (A)");
    auto* fit = new QToolButton(this);
    fit->setText("Fit");
    fit->setToolTip("Show all tokens and rows (Home)");
    busy_ = new QProgressBar(this);
    busy_->setRange(0, 0);
    busy_->setMaximumWidth(90);
    busy_->setTextVisible(false);
    busy_->setAccessibleName("Attention is being computed");
    cancel_ = new QToolButton(this);
    cancel_->setText("Cancel");
    cancel_->setToolTip("Stop computing attention (Escape)");
    canvas_ = new MapCanvas(document, this);
    legend_ = new Legend(*canvas_, this);
    facts_ = new QLabel(this);
    facts_->setTextFormat(Qt::PlainText);
    facts_->setTextInteractionFlags(Qt::TextSelectableByMouse);
    facts_->setSizePolicy(QSizePolicy::Ignored, QSizePolicy::Fixed);
    facts_->setAccessibleName("The focused token");

    auto* bar = new QHBoxLayout;
    bar->setContentsMargins(6, 4, 10, 0);
    for (QWidget* widget :
         std::initializer_list<QWidget*>{layer_, head_, attention_, fit, busy_, cancel_}) {
      bar->addWidget(widget);
    }
    bar->addWidget(legend_, 1);
    auto* all = new QVBoxLayout(this);
    all->setContentsMargins(0, 0, 0, 4);
    all->setSpacing(2);
    all->addLayout(bar);
    all->addWidget(canvas_, 1);
    auto* line = new QHBoxLayout;
    line->setContentsMargins(10, 0, 10, 0);
    line->addWidget(facts_);
    all->addLayout(line);
    setFocusProxy(canvas_);

    canvas_->changed = [this] {
      show_state();
      if (canvas_->is_ready()) emit ready();
    };
    connect(layer_, &QComboBox::activated, this, &LifetimeView::choose_head);
    connect(head_, &QComboBox::activated, this, &LifetimeView::choose_head);
    connect(attention_, &QToolButton::clicked, canvas_,
            [this](bool on) { canvas_->set_attention(on); });
    connect(fit, &QToolButton::clicked, canvas_, [this] { canvas_->fit(); });
    connect(cancel_, &QToolButton::clicked, canvas_, [this] { canvas_->set_attention(false); });
    connect(&document, &Document::runs_changed, this, &LifetimeView::follow);
    connect(&document, &Document::current_changed, this, &LifetimeView::follow);
    connect(&document, &Document::focus_changed, this, &LifetimeView::follow);
    connect(&document, &Document::display_changed, canvas_, [this] { canvas_->follow_display(); });
    connect(&document, &Document::zoom_changed, canvas_, [this] { canvas_->request(); });
    connect(&document, &Document::selection_changed, canvas_, [this] { canvas_->update(); });
    follow();
  }

  [[nodiscard]] QString name() const override { return "lifetimes"; }
  [[nodiscard]] QString title() const override { return "Token lifetimes"; }
  [[nodiscard]] QString help() const override {
    return "When each entry of one head is held, read and evicted; A adds attention, the wheel or "
           "a box zooms, Page Up and Down change the head, arrows the token and the row.";
  }
  [[nodiscard]] bool is_ready() const override { return canvas_->is_ready(); }
  [[nodiscard]] std::string csv() const override {
    if (!canvas_->shown()) return {};
    const Which& of = *canvas_->shown();
    return csv_of_lives(*of.result->lifetimes, static_cast<int>(of.run), of.layer, of.head,
                        canvas_->trace().get(), canvas_->attention().get());
  }
  void draw(QPainter& painter, const QSize& size) override {
    painter.setFont(font());
    const double scale = painter.device()->devicePixelRatioF();
    canvas_->draw(painter, size, scale);
    canvas_->request();
  }

 private:
  void follow() { canvas_->follow(); }
  void choose_head() {
    Focus focus = document().focus();
    focus.layer = layer_->currentIndex();
    focus.head = head_->currentIndex();
    document().set_focus(focus);
  }
  void show_state() {
    const auto& shown = canvas_->shown();
    const int layers = shown ? shown->result->trace.layers() : 0;
    const int heads = shown ? shown->result->runs[shown->run].heads : 0;
    layer_->setEnabled(shown.has_value());
    head_->setEnabled(shown.has_value());
    attention_->setEnabled(shown.has_value());
    QStringList names;
    for (int l = 0; l < layers; ++l) names << layer_label(shown->result->trace, l);
    fill(layer_, names, shown ? shown->layer : -1);
    names.clear();
    for (int h = 0; h < heads; ++h) names << QString("head %1").arg(h);
    fill(head_, names, shown ? shown->head : -1);
    attention_->setChecked(canvas_->wants_attention());
    busy_->setVisible(canvas_->is_busy());
    cancel_->setVisible(canvas_->is_busy());
    legend_->update();
    const std::int64_t token = document().focus().token;
    facts_->setText(!canvas_->message().isEmpty() ? canvas_->message()
                    : !shown                      ? QString()
                    : token < 0 ? "Click, or use the arrow keys, to choose a token and a row."
                                : canvas_->facts(token));
    facts_->setToolTip(Qt::convertFromPlainText(facts_->text()));
  }
  static void fill(QComboBox* box, const QStringList& names, int current) {
    QStringList now;
    for (int i = 0; i < box->count(); ++i) now << box->itemText(i);
    if (now != names) {
      box->clear();
      box->addItems(names);
    }
    box->setCurrentIndex(current);
  }

  QComboBox *layer_, *head_;
  QToolButton *attention_, *cancel_;
  QProgressBar* busy_;
  MapCanvas* canvas_;
  Legend* legend_;
  QLabel* facts_;
};

}  // namespace

View* make_lifetime_view(Document& document, QWidget* parent) {
  return new LifetimeView(document, parent);
}

}  // namespace kvspan::gui

#include "lifetime_view.moc"
