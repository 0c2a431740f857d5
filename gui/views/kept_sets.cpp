// SPDX-License-Identifier: Apache-2.0
#include "gui/views/kept_sets.h"

#include <QHBoxLayout>
#include <QHeaderView>
#include <QHelpEvent>
#include <QKeyEvent>
#include <QLabel>
#include <QMouseEvent>
#include <QPainter>
#include <QTableView>
#include <QToolTip>
#include <QVBoxLayout>
#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "gui/model/background.h"
#include "gui/model/lives.h"
#include "gui/model/residents.h"
#include "gui/paint/theme.h"
#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

// Held by both, only by the current run, only by the baseline, by neither; what one of them holds
// more than the other is as in the chart of the difference.
std::array<QColor, 4> set_colours() {
  return {held_colour(), theme().bad, theme().good, theme().unresident};
}

constexpr std::array kSetNames{"in both", "only current", "only baseline", "in neither"};

using Sets = std::shared_ptr<const KeptSets>;

// From left to right all tokens: how many of the heads hold each in both runs, in one, in none.
class Strip final : public QWidget {
 public:
  Strip(Document& document, QWidget* parent) : QWidget(parent), document_(document) {
    setFocusPolicy(Qt::StrongFocus);
    setFixedHeight(fontMetrics().height() * 2 + 44);
    int legend = kEdge;
    for (const char* name : kSetNames) legend += legend_step(name);
    setMinimumWidth(legend);
    setAccessibleName("Tokens held by both runs, by one, by neither");
  }
  void show(Sets sets, std::int64_t tokens) {
    sets_ = std::move(sets);
    tokens_ = tokens;
    update();
  }

 protected:
  void paintEvent(QPaintEvent* /*event*/) override {
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
        const std::array<std::int32_t, 3> held{sets_->both[i], sets_->current[i],
                                               sets_->baseline[i]};
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
  bool event(QEvent* event) override {
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
  void mousePressEvent(QMouseEvent* event) override {
    if (sets_) choose(token_at(event->pos().x()));
  }
  void keyPressEvent(QKeyEvent* event) override {
    const std::int64_t token = document_.focus().token;
    if (sets_ && event->key() == Qt::Key_Left) return choose(std::max<std::int64_t>(0, token - 1));
    if (sets_ && event->key() == Qt::Key_Right) return choose(token + 1);
    QWidget::keyPressEvent(event);
  }

 private:
  [[nodiscard]] QRect strip() const {
    const int line = fontMetrics().height();
    return rect().adjusted(10, line + 8, -10, -line - 4);
  }
  [[nodiscard]] std::int64_t token_at(int x) const {
    const QRect box = strip();
    return std::clamp<std::int64_t>((x - box.left()) * tokens_ / std::max(1, box.width()), 0,
                                    tokens_ - 1);
  }
  void choose(std::int64_t token) {
    Focus focus = document_.focus();
    focus.token = token;
    document_.set_focus(focus);
  }
  static constexpr int kEdge = 10;
  static constexpr int kMark = 16;
  [[nodiscard]] int legend_step(const char* name) const {
    return kMark + fontMetrics().horizontalAdvance(name) + 14;
  }
  void paint_legend(QPainter& painter) const {
    const auto colours = set_colours();
    int x = kEdge;
    for (std::size_t i = 0; i < kSetNames.size(); ++i) {
      painter.fillRect(QRect(x, 5, 11, 11), colours[i]);
      painter.setPen(theme().faint);
      painter.drawRect(QRect(x, 5, 10, 10));
      painter.setPen(theme().ink);
      painter.drawText(QRect(x + kMark, 0, width() - x - kMark, 21),
                       Qt::AlignLeft | Qt::AlignVCenter, kSetNames[i]);
      x += legend_step(kSetNames[i]);
    }
  }

  Document& document_;
  Sets sets_;
  std::int64_t tokens_ = 0;
};

// Overlap of each (layer, head): layers downwards.
class OverlapMap final : public QWidget {
 public:
  OverlapMap(Document& document, QWidget* parent) : QWidget(parent), document_(document) {
    setFocusPolicy(Qt::StrongFocus);
    setMinimumSize(210, 70);
    setAccessibleName("Overlap by layer and head");
  }
  void show(Sets sets, const TraceInfo& trace, bool choosable) {
    sets_ = std::move(sets);
    layer_ids_ = trace.layer_ids;
    choosable_ = choosable;
    update();
  }

 protected:
  void paintEvent(QPaintEvent* /*event*/) override {
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
  void mousePressEvent(QMouseEvent* event) override {
    if (!sets_ || !choosable_) return;
    for (int l = 0; l < sets_->layers; ++l) {
      for (int h = 0; h < sets_->heads; ++h) {
        if (cell(l, h).contains(event->pos())) choose(l, h);
      }
    }
  }
  void keyPressEvent(QKeyEvent* event) override {
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
  bool event(QEvent* event) override {
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

 private:
  static constexpr int kNames = 34;
  [[nodiscard]] QRectF cell(int layer, int head) const {
    const double top = fontMetrics().height() + 6;
    const double wide = std::min(90.0, (width() - 10.0 - kNames - 8) / sets_->heads);
    const double high = std::min(26.0, (height() - top - 4) / sets_->layers);
    return {10 + kNames + head * wide, top + layer * high, wide - 1, high - 1};
  }
  void choose(int layer, int head) {
    Focus focus = document_.focus();
    focus.layer = layer;
    focus.head = head;
    document_.set_focus(focus);
  }

  Document& document_;
  Sets sets_;
  std::vector<int> layer_ids_;
  bool choosable_ = true;
};

class KeptSetsPanel final : public QWidget {
 public:
  KeptSetsPanel(Document& document, QWidget* parent)
      : QWidget(parent), document_(document), work_(this) {
    summary_ = new QLabel(this);
    summary_->setTextFormat(Qt::PlainText);
    summary_->setWordWrap(true);
    summary_->setContentsMargins(10, 0, 10, 0);
    summary_->setAccessibleName("Kept sets");
    strip_ = new Strip(document, this);
    map_ = new OverlapMap(document, this);
    tokens_ = new QTableView(this);
    tokens_->setModel(&model_);
    set_up_rows(*tokens_);
    tokens_->setSortingEnabled(true);
    tokens_->sortByColumn(KeptModel::kToken, Qt::AscendingOrder);
    tokens_->verticalHeader()->setDefaultSectionSize(fontMetrics().height() + 6);
    tokens_->horizontalHeader()->setSectionResizeMode(KeptModel::kText, QHeaderView::Stretch);
    tokens_->setAccessibleName("Tokens that only one of the runs holds");
    auto* below = new QHBoxLayout;
    below->addWidget(map_, 2);
    below->addWidget(tokens_, 3);
    auto* all = new QVBoxLayout(this);
    all->setContentsMargins(0, 4, 0, 0);
    all->setSpacing(4);
    all->addWidget(summary_);
    all->addWidget(strip_);
    all->addLayout(below, 1);

    connect(tokens_->selectionModel(), &QItemSelectionModel::currentChanged, this,
            [this](const QModelIndex& now) {
              if (following_ || !now.isValid()) return;
              Focus focus = document_.focus();
              focus.token = model_.token_at(now.row());
              document_.set_focus(focus);
            });
    for (const auto signal :
         {&Document::runs_changed, &Document::current_changed, &Document::selection_changed}) {
      connect(&document, signal, this, [this] { refresh(); });
    }
    connect(&document, &Document::focus_changed, this, [this] {
      if (!stale_ && sets_ && sets_->scope == scope()) {
        select_token();
        strip_->update();
      } else {
        refresh();
      }
    });
    refresh();
  }

 protected:
  void showEvent(QShowEvent* /*event*/) override {
    if (stale_) refresh();
  }

 private:
  [[nodiscard]] int heads() const {
    return std::max(document_.current_run()->run().heads, document_.baseline_run()->run().heads);
  }
  // Of the run that stores more heads: the focused head is one of the current run's.
  [[nodiscard]] HeadScope scope() const {
    const Focus focus = document_.focus();
    return {focus.layer,
            focus.head < 0 ? -1 : focus.head * heads() / document_.current_run()->run().heads};
  }

  void refresh() {
    stale_ = !isVisible();  // what is not seen is not counted
    if (stale_) return work_.cancel();
    const ShownRun* current = document_.current_run();
    const ShownRun* baseline = document_.baseline_run();
    const bool same =
        current != nullptr && baseline != nullptr && document_.current() == document_.baseline();
    const QString why =
        same ? "The current run is the baseline: choose another run to compare it with."
             : why_not_compared(current, baseline);
    if (!why.isEmpty()) {
      work_.cancel();
      return set(nullptr, why);
    }
    setProperty("ready", false);
    work_.run(
        [a = *current, b = *baseline,
         row = std::min(document_.instant(), current->result->trace.tokens - 1),
         scope = scope()](const auto& cancelled) { return kept_sets(a, b, row, scope, cancelled); },
        [this](KeptSets sets) { set(std::make_shared<const KeptSets>(std::move(sets)), {}); },
        [this](const QString& what) { set(nullptr, what); });
  }

  void set(Sets sets, const QString& why) {
    following_ = true;
    sets_ = std::move(sets);
    const ShownRun* current = document_.current_run();
    const TraceInfo none;
    const TraceInfo& trace = sets_ ? current->result->trace : none;
    for (QWidget* part : std::initializer_list<QWidget*>{strip_, map_, tokens_}) {
      part->setVisible(sets_ != nullptr);
    }
    summary_->setAlignment(sets_ ? Qt::AlignLeft | Qt::AlignVCenter : Qt::AlignCenter);
    summary_->setText(sets_ ? summary() : why);
    strip_->show(sets_, trace.tokens);
    map_->show(sets_, trace, sets_ && sets_->heads == current->run().heads);
    model_.set(sets_, sets_ ? document_.trace_of(*current->result) : nullptr);
    following_ = false;
    select_token();
    setProperty("ready", true);
  }

  [[nodiscard]] QString summary() const {
    const ShownRun& current = *document_.current_run();
    const ShownRun& baseline = *document_.baseline_run();
    const Overlap& sum = sets_->sum;
    const HeadScope of = sets_->scope;
    QString where = layer_label(current.result->trace, of.layer);
    where += of.head < 0 ? ", all heads" : QString(", head %1").arg(of.head);
    QString text = QString("Row %1, %2: both hold %3 entries, only %4 %5, only %6 %7; Jaccard %8.")
                       .arg(count_text(sets_->row), where, count_text(sum.both),
                            QString::fromStdString(current.run().label), count_text(sum.current),
                            QString::fromStdString(baseline.run().label), count_text(sum.baseline))
                       .arg(sum.jaccard(), 0, 'f', 3);
    if (current.run().heads != baseline.run().heads) {
      text += QString(
                  " The runs store %1 and %2 heads: each of %3 is compared with the one that "
                  "serves the same queries.")
                  .arg(current.run().heads)
                  .arg(baseline.run().heads)
                  .arg(sets_->heads);
    }
    return text;
  }

  void select_token() {
    following_ = true;
    const int row = model_.row_of(document_.focus().token);
    if (row >= 0) {
      tokens_->setCurrentIndex(model_.index(row, 0));
    } else {
      tokens_->clearSelection();
    }
    following_ = false;
  }

  Document& document_;
  Background work_;
  KeptModel model_;
  Sets sets_;
  bool following_ = false;
  bool stale_ = true;  // the document has changed since
  QLabel* summary_;
  Strip* strip_;
  OverlapMap* map_;
  QTableView* tokens_;
};

}  // namespace

QWidget* make_kept_sets(Document& document, QWidget* parent) {
  return new KeptSetsPanel(document, parent);
}

}  // namespace kvspan::gui
