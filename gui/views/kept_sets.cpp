// SPDX-License-Identifier: Apache-2.0
#include "gui/views/kept_sets.h"

#include <QHBoxLayout>
#include <QHeaderView>
#include <QLabel>
#include <QTableView>
#include <QVBoxLayout>
#include <algorithm>
#include <utility>

#include "gui/model/background.h"
#include "gui/model/kept_sets.h"
#include "gui/model/lives.h"
#include "gui/model/numbers.h"
#include "gui/model/token_models.h"
#include "gui/paint/kept_maps.h"
#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

class KeptSetsPanel final : public QWidget {
 public:
  KeptSetsPanel(Document& document, QWidget* parent)
      : QWidget(parent), document_(document), work_(this) {
    summary_ = new QLabel(this);
    summary_->setTextFormat(Qt::PlainText);
    summary_->setWordWrap(true);
    summary_->setContentsMargins(10, 0, 10, 0);
    summary_->setAccessibleName("Kept sets");
    strip_ = new KeptStrip(document, this);
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

  // With a dozen of the tokens that differ.
  [[nodiscard]] QSize sizeHint() const override {
    QSize size = QWidget::sizeHint();
    if (!sets_) return size;
    constexpr int kTokens = 12;
    const int rows = std::min(model_.rowCount(), kTokens);
    const int table = tokens_->horizontalHeader()->sizeHint().height() +
                      rows * tokens_->verticalHeader()->defaultSectionSize();
    const int below = std::max({map_->sizeHint().height(), map_->minimumHeight(), table});
    const int words = summary_->heightForWidth(kPictureSize.width() - 24);
    size.setHeight(words + strip_->height() + below + 3 * layout()->spacing());
    return size;
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

  void set(KeptSetsPtr sets, const QString& why) {
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
  KeptSetsPtr sets_;
  bool following_ = false;
  bool stale_ = true;  // the document has changed since
  QLabel* summary_;
  KeptStrip* strip_;
  OverlapMap* map_;
  QTableView* tokens_;
};

}  // namespace

QWidget* make_kept_sets(Document& document, QWidget* parent) {
  return new KeptSetsPanel(document, parent);
}

}  // namespace kvspan::gui
