// SPDX-License-Identifier: Apache-2.0
// What is held at the document's instant: how much by layer and head, and which tokens.
#include <QButtonGroup>
#include <QHBoxLayout>
#include <QHeaderView>
#include <QLabel>
#include <QLineEdit>
#include <QSplitter>
#include <QStackedWidget>
#include <QTableView>
#include <QTextDocument>
#include <QToolButton>
#include <QTreeView>
#include <QVBoxLayout>
#include <algorithm>
#include <utility>

#include "gui/model/background.h"
#include "gui/model/csv.h"
#include "gui/model/head_model.h"
#include "gui/model/lives.h"
#include "gui/model/residents.h"
#include "gui/model/token_models.h"
#include "gui/paint/held_table.h"
#include "gui/paint/theme.h"
#include "gui/paint/token_text.h"
#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

constexpr int kMargin = 12;        // of pictures
constexpr int kMostExpanded = 64;  // heads that are all shown at first

class ResidentView final : public View {
  Q_OBJECT
 public:
  ResidentView(Document& document, QWidget* parent) : View(document, parent), work_(this) {
    summary_ = new QLabel(this);
    summary_->setTextFormat(Qt::PlainText);
    summary_->setSizePolicy(QSizePolicy::Ignored, QSizePolicy::Fixed);
    heads_ = new QTreeView(this);
    heads_->setModel(&heads_model_);
    heads_->setUniformRowHeights(true);
    heads_->setAllColumnsShowFocus(true);
    heads_->setAlternatingRowColors(true);
    heads_->setFrameShape(QFrame::NoFrame);
    heads_->setAccessibleName("Entries by layer and head");
    tokens_ = new QTableView(this);
    tokens_->setModel(&tokens_model_);
    set_up_rows(*tokens_);
    tokens_->setSortingEnabled(true);
    tokens_->sortByColumn(TokensModel::kToken, Qt::AscendingOrder);
    tokens_->verticalHeader()->setDefaultSectionSize(fontMetrics().height() + 6);
    tokens_->horizontalHeader()->setSectionResizeMode(TokensModel::kText, QHeaderView::Stretch);
    tokens_->setAccessibleName("Tokens that are held");
    text_ = new TokenText(this);
    text_->chosen = [this](std::int64_t token) { choose(token); };
    text_->tip = [this](std::int64_t token) { return facts(token); };
    nothing_ = new QLabel(this);
    nothing_->setTextFormat(Qt::PlainText);
    nothing_->setAlignment(Qt::AlignCenter);
    nothing_->setWordWrap(true);
    nothing_->setMargin(20);

    QWidget* right = build_tokens();
    auto* parts = new QSplitter(this);
    parts->addWidget(heads_);
    parts->addWidget(right);
    parts->setStretchFactor(1, 1);
    parts->setSizes({380, 540});
    parts->setChildrenCollapsible(false);
    auto* all = new QVBoxLayout(this);
    all->setContentsMargins(0, 4, 0, 0);
    all->setSpacing(4);
    auto* line = new QHBoxLayout;
    line->setContentsMargins(10, 0, 10, 0);
    line->addWidget(summary_);
    all->addLayout(line);
    all->addWidget(parts, 1);
    setFocusProxy(heads_);

    connect_all();
    refresh();
  }

  [[nodiscard]] QString name() const override { return "resident"; }
  [[nodiscard]] QString title() const override { return "Held now"; }
  [[nodiscard]] QString help() const override {
    return "What the current run holds at the selected row, by layer, head and token; the change "
           "is that since the selection began. Choose a head or a token to see it everywhere.";
  }
  [[nodiscard]] bool is_ready() const override { return !work_.busy(); }
  [[nodiscard]] std::string csv() const override { return csv_of(tokens_model_); }
  void draw(QPainter& painter, const QSize& size) override;
  [[nodiscard]] QSize picture_size() const override;

 protected:
  void showEvent(QShowEvent* /*event*/) override {
    if (stale_) refresh();
  }

 private:
  // The text or the table of tokens, below what chooses between them.
  [[nodiscard]] QWidget* build_tokens() {
    auto* as_text = new QToolButton(this);
    as_text->setText("Text");
    as_text->setToolTip("The text, each token on the colour of how many heads hold it");
    auto* as_table = new QToolButton(this);
    as_table->setText("Table");
    as_table->setToolTip("The tokens that are held");
    ways_ = new QButtonGroup(this);
    for (QToolButton* button : {as_text, as_table}) button->setCheckable(true);
    ways_->addButton(as_text, 0);
    ways_->addButton(as_table, 1);
    as_text->setChecked(true);
    filter_ = new QLineEdit(this);
    filter_->setPlaceholderText("Filter tokens by text");
    filter_->setClearButtonEnabled(true);
    filter_->setMaximumWidth(220);
    filter_->setAccessibleName("Filter tokens by text");
    scale_ = new HeldScale(this);

    auto* bar = new QHBoxLayout;
    for (QWidget* widget : std::initializer_list<QWidget*>{as_text, as_table, filter_}) {
      bar->addWidget(widget);
    }
    bar->addWidget(scale_, 1);
    auto* right = new QWidget(this);
    auto* column = new QVBoxLayout(right);
    column->setContentsMargins(4, 0, 6, 0);
    column->setSpacing(4);
    column->addLayout(bar);
    pages_ = new QStackedWidget(right);
    for (QWidget* page : std::initializer_list<QWidget*>{text_, tokens_, nothing_}) {
      pages_->addWidget(page);
    }
    no_text_ = new QLabel(right);
    no_text_->setObjectName("no_text");
    no_text_->setTextFormat(Qt::PlainText);
    no_text_->setWordWrap(true);
    no_text_->setSizePolicy(QSizePolicy::Ignored, QSizePolicy::Preferred);
    column->addWidget(no_text_);
    column->addWidget(pages_, 1);
    return right;
  }

  void connect_all() {
    connect(ways_, &QButtonGroup::idClicked, this, &ResidentView::show_page);
    connect(filter_, &QLineEdit::textChanged, this, [this](const QString& text) {
      tokens_model_.set_filter(text);
      if (!text.isEmpty()) ways_->button(1)->setChecked(true);
      show_page();
    });
    connect(heads_->selectionModel(), &QItemSelectionModel::currentChanged, this,
            [this](const QModelIndex& now) {
              if (following_ || !now.isValid()) return;
              const HeadScope scope = heads_model_.scope_of(now);
              Focus focus = this->document().focus();
              focus.layer = scope.layer;
              focus.head = scope.head;
              this->document().set_focus(focus);
            });
    connect(tokens_->selectionModel(), &QItemSelectionModel::currentChanged, this,
            [this](const QModelIndex& now) {
              if (!following_ && now.isValid()) choose(tokens_model_.token_at(now.row()));
            });
    connect(&document(), &Document::runs_changed, this, &ResidentView::refresh);
    connect(&document(), &Document::current_changed, this, &ResidentView::refresh);
    connect(&document(), &Document::selection_changed, this, &ResidentView::refresh);
    connect(&document(), &Document::focus_changed, this, &ResidentView::follow_focus);
  }

  [[nodiscard]] HeadScope scope() const {
    const Focus focus = document().focus();
    // A head alone is that head of every layer.
    return {focus.layer, focus.head};
  }

  void refresh() {
    stale_ = !isVisible();  // what is not seen is not counted
    if (stale_) return work_.cancel();
    const ShownRun* shown = document().current_run();
    const QString why = why_no_lives(shown);
    const bool heads = shown != nullptr && (why.isEmpty() || !shown->run().heads_over_time.empty());
    nothing_->setText(why);
    if (!heads) {
      work_.cancel();
      set(nullptr);
      return;
    }
    const RowIndex last = shown->result->trace.tokens - 1;
    work_.run(
        [result = shown->result, run = shown->index, row = std::min(document().instant(), last),
         since = std::min(document().selection().begin, last),
         scope = scope()](const auto& cancelled) {
          return holdings_at(*result, run, row, since, scope, cancelled);
        },
        [this](Holdings holdings) { set(std::make_shared<const Holdings>(std::move(holdings))); },
        [this](const QString& what) {
          nothing_->setText(what);
          set(nullptr);
        });
  }

  // null: nothing is known.
  void set(std::shared_ptr<const Holdings> holdings) {
    following_ = true;
    holdings_ = std::move(holdings);
    const ShownRun* shown = document().current_run();
    const TraceInfo none;
    const TraceInfo& trace = shown == nullptr ? none : shown->result->trace;
    const bool same_shape = heads_model_.rowCount() == (holdings_ ? holdings_->layers + 1 : 0);
    heads_model_.set(holdings_, trace);
    if (holdings_ && (!same_shape || !expanded_) &&
        holdings_->layers * holdings_->heads <= kMostExpanded) {
      heads_->expandAll();
      expanded_ = true;
    }
    for (int c = 0; c < HeadsModel::kColumns; ++c) heads_->resizeColumnToContents(c);
    const bool tokens = holdings_ && !holdings_->held_by.empty();
    QString why;
    const auto source = tokens ? document().trace_of(*shown->result, &why) : nullptr;
    tokens_model_.set(tokens ? holdings_ : nullptr, source, trace.tokens);
    tokens_->setColumnHidden(TokensModel::kFirst, tokens && holdings_->scope_heads == 1);
    tokens_->setColumnHidden(TokensModel::kHeldBy, tokens && holdings_->scope_heads == 1);
    std::vector<float> shares;
    if (tokens) {
      for (const std::int32_t heads : holdings_->held_by) {
        shares.push_back(static_cast<float>(heads) / static_cast<float>(holdings_->scope_heads));
      }
    }
    text_->show(source, tokens ? trace.tokens : 0, std::move(shares));
    scale_->set_heads(tokens ? holdings_->scope_heads : 0,
                      tokens && holdings_->sum().host_entries > 0);
    no_text_->setText(tokens && source == nullptr ? "No text of tokens: " + why : QString());
    no_text_->setVisible(!no_text_->text().isEmpty());
    summary_->setText(summary());
    summary_->setToolTip(Qt::convertFromPlainText(summary_->text()));
    following_ = false;
    select_focus();
    show_page();
    if (!work_.busy()) emit ready();
  }

  [[nodiscard]] QString summary() const {
    const ShownRun* shown = document().current_run();
    if (!holdings_ || shown == nullptr) return {};
    return summary_of(*holdings_, QString::fromStdString(shown->run().label)) +
           QString("; tokens: %1").arg(scope_text());
  }
  [[nodiscard]] QString scope_text() const {
    const ShownRun* shown = document().current_run();
    const HeadScope now = scope();
    const QString layer = layer_label(shown->result->trace, now.layer);
    if (now.layer < 0 && now.head < 0) return "all layers and heads";
    return now.head < 0 ? layer + ", all heads" : QString("%1, head %2").arg(layer).arg(now.head);
  }

  void follow_focus() {
    const bool same = !stale_ && holdings_ && holdings_->scope == scope();
    if (same) {
      select_focus();
    } else {
      refresh();
    }
  }
  void select_focus() {
    following_ = true;
    const Focus focus = document().focus();
    const QModelIndex head = heads_model_.index_of(scope());
    if (head.isValid()) heads_->setCurrentIndex(head);
    const int row = tokens_model_.row_of(focus.token);
    if (row >= 0) {
      tokens_->setCurrentIndex(tokens_model_.index(row, 0));
      tokens_->scrollTo(tokens_model_.index(row, 0));
    } else {
      tokens_->clearSelection();
    }
    text_->set_token(focus.token);
    following_ = false;
  }
  void choose(std::int64_t token) {
    Focus focus = document().focus();
    focus.token = token;
    document().set_focus(focus);
  }
  void draw_tokens(QPainter& painter, const QRect& area);
  void show_page() {
    const bool tokens = holdings_ && !holdings_->held_by.empty();
    pages_->setCurrentIndex(tokens ? ways_->checkedId() : 2);
  }

  [[nodiscard]] QString facts(std::int64_t token) const {
    const ShownRun* shown = document().current_run();
    if (!holdings_ || shown == nullptr || token < 0) return {};
    const auto source = document().trace_of(*shown->result);
    QString text = QString("token %1  %2").arg(count_text(token), token_label(source.get(), token));
    if (token > holdings_->row) return text + "\nnot born yet";
    const auto t = static_cast<std::size_t>(token);
    text += QString("\nheld by %1 of %2").arg(holdings_->held_by[t]).arg(holdings_->scope_heads);
    if (holdings_->held_by[t] == 0) return text;
    const auto dies = [&](std::uint32_t row) {
      return row >= static_cast<std::uint32_t>(shown->result->trace.tokens)
                 ? QString("never")
                 : "row " + count_text(row);
    };
    return text + QString("\ndies first: %1, last: %2")
                      .arg(dies(holdings_->first[t]), dies(holdings_->last[t]));
  }

  Background work_;
  HeadsModel heads_model_;
  TokensModel tokens_model_;
  std::shared_ptr<const Holdings> holdings_;
  bool following_ = false;  // the selection moves because the document changed
  bool expanded_ = false;
  bool stale_ = true;  // the document has changed since
  QLabel *summary_, *nothing_, *no_text_;
  QTreeView* heads_;
  QTableView* tokens_;
  TokenText* text_;
  HeldScale* scale_;
  QStackedWidget* pages_;
  QButtonGroup* ways_;
  QLineEdit* filter_;
};

// Heads as a table with bars of their shares, beside the text.
void ResidentView::draw(QPainter& painter, const QSize& size) {
  painter.setFont(font());
  const QRect whole(QPoint(), size);
  if (!holdings_) {
    painter.setPen(theme().faint);
    painter.drawText(whole.adjusted(20, 20, -20, -20), Qt::AlignCenter | Qt::TextWordWrap,
                     nothing_->text());
    return;
  }
  const QFontMetrics metrics(font());
  const int line = held_line_height(metrics);
  painter.setPen(theme().ink);
  painter.drawText(QRect(kMargin, 6, size.width() - 2 * kMargin, line),
                   Qt::AlignLeft | Qt::AlignVCenter,
                   metrics.elidedText(summary(), Qt::ElideRight, size.width() - 2 * kMargin));
  const QRect below = whole.adjusted(kMargin, line + 12, -kMargin, -6);
  paint_held_table(painter, below, heads_model_);
  draw_tokens(painter, below.adjusted(kHeldTableWidth + 26, 0, 0, 0));
}

QSize ResidentView::picture_size() const {
  if (!holdings_) return kNoteSize;
  const QFontMetrics metrics(font());
  const int line = held_line_height(metrics);
  const int beside = kHeldTableWidth + 26 + 2 * kMargin;
  int width =
      std::clamp(metrics.horizontalAdvance(summary()) + 2 * kMargin, 900, kPictureSize.width());
  int text = 2 * line;
  if (!no_text_->text().isEmpty()) text += 3 * line;
  if (!holdings_->held_by.empty()) {
    if (text_->height_for(width - beside) > kPictureSize.height()) width = kPictureSize.width();
    text += text_->height_for(width - beside);
  }
  const int table = held_table_height(metrics, heads_model_);
  const int height = std::clamp(std::max(table, text), 5 * line, kPictureSize.height());
  return {width, line + 18 + height};
}

void ResidentView::draw_tokens(QPainter& painter, const QRect& area) {
  if (holdings_->held_by.empty()) {
    painter.setPen(theme().faint);
    painter.drawText(area, Qt::AlignCenter | Qt::TextWordWrap, nothing_->text());
    return;
  }
  const int line = held_line_height(QFontMetrics(font()));
  scale_->paint(painter, QRect(area.left(), area.top(), area.width(), line));
  painter.setFont(font());
  QRect below = area.adjusted(0, line + 4, 0, 0);
  if (!no_text_->text().isEmpty()) {
    painter.setPen(theme().faint);
    QRect taken;
    painter.drawText(below, Qt::AlignLeft | Qt::TextWordWrap, no_text_->text(), &taken);
    below.setTop(taken.bottom() + 4);
  }
  text_->draw(painter, below);
}

}  // namespace

View* make_resident_view(Document& document, QWidget* parent) {
  return new ResidentView(document, parent);
}

}  // namespace kvspan::gui

#include "resident_view.moc"
