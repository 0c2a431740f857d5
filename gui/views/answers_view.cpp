// SPDX-License-Identifier: Apache-2.0
// Samples of an evaluation as rows, the policies' answers side by side.
#include <QHBoxLayout>
#include <QHeaderView>
#include <QLabel>
#include <QLineEdit>
#include <QStyledItemDelegate>
#include <QTableView>
#include <QVBoxLayout>
#include <algorithm>
#include <set>

#include "gui/model/evaluation.h"
#include "gui/paint/theme.h"
#include "gui/views/task_choice.h"
#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

constexpr int kAnswerWidth = 170, kLinesOfAnswer = 5;
constexpr std::size_t kMostAnswers = 8;  // columns of a picture

// An answer on the colour of its score.
class AnswerDelegate final : public QStyledItemDelegate {
 public:
  using QStyledItemDelegate::QStyledItemDelegate;

 protected:
  void initStyleOption(QStyleOptionViewItem* option, const QModelIndex& index) const override {
    QStyledItemDelegate::initStyleOption(option, index);
    option->features |= QStyleOptionViewItem::WrapText;
    option->displayAlignment = Qt::AlignLeft | Qt::AlignTop;
    const double good = index.data(PlainTable::good_role).toDouble();
    if (good < 0) return;
    const QColor tint = mix(theme().bad, theme().good, std::clamp(good, 0.0, 1.0));
    option->backgroundBrush = mix(theme().paper, tint, 0.28);
  }
};

class AnswersView final : public View {
 public:
  AnswersView(Document& document, QWidget* parent) : View(document, parent) {
    auto* box = rows_of(*this);
    controls_ = new QWidget(this);
    auto* row = row_in(*controls_);
    task_ = new TaskChoice(controls_);
    words_ = new QLineEdit(controls_);
    words_->setObjectName("words");
    words_->setPlaceholderText("Policies with ...");
    words_->setAccessibleName("Policies with these words");
    words_->setToolTip(
        "All policies with one of these words in their names; else those whose runs "
        "are shown in charts");
    words_->setClearButtonEnabled(true);
    words_->setMaximumWidth(220);
    row->addWidget(task_);
    row->addWidget(words_);
    row->addStretch(1);
    box->addWidget(controls_);
    caption_ = text_line(this, "caption");
    box->addWidget(caption_);
    table_ = new QTableView(this);
    table_->setModel(&model_);
    table_->setItemDelegate(new AnswerDelegate(table_));
    table_->setFrameShape(QFrame::NoFrame);
    table_->setSelectionMode(QAbstractItemView::SingleSelection);
    table_->setAccessibleName("answers");
    table_->verticalHeader()->hide();
    table_->verticalHeader()->setSectionResizeMode(QHeaderView::Fixed);
    table_->verticalHeader()->setDefaultSectionSize(kLinesOfAnswer * fontMetrics().height() + 2);
    table_->horizontalHeader()->setHighlightSections(false);
    table_->horizontalHeader()->setDefaultSectionSize(kAnswerWidth);
    table_->horizontalHeader()->setDefaultAlignment(Qt::AlignLeft | Qt::AlignVCenter);
    table_->setHorizontalScrollMode(QAbstractItemView::ScrollPerPixel);
    box->addWidget(table_, 1);
    empty_ = new QLabel("Open what kvspan eval --out wrote.", this);
    empty_->setAlignment(Qt::AlignCenter);
    box->addWidget(empty_, 1);
    setFocusProxy(table_);
    connect(task_, &QComboBox::activated, this, [this] { rebuild(); });
    connect(words_, &QLineEdit::textChanged, this, [this] { rebuild(); });
    connect(table_->selectionModel(), &QItemSelectionModel::currentChanged, this,
            [this](const QModelIndex& now) {
              const int item = now.data(PlainTable::item_role).toInt();
              if (now.isValid() && item >= 0) show_run(static_cast<std::size_t>(item));
            });
    connect(&document, &Document::runs_changed, this, [this] { follow(); });
    follow();
  }

  [[nodiscard]] QString name() const override { return "answers"; }
  [[nodiscard]] QString title() const override { return "Answers"; }
  [[nodiscard]] QString help() const override {
    return "Samples as rows, answers of the policies side by side on the colour of their scores, "
           "with what was left of the named spans when the answer ended. A click shows that run in "
           "all views.";
  }
  [[nodiscard]] bool has_content() const override { return task_->chosen().has_value(); }
  [[nodiscard]] std::string csv() const override {
    const auto task = task_->chosen();
    return task ? answers_csv(*task->first, task->second, policies_) : "\n";
  }
  void draw(QPainter& painter, const QSize& size) override {
    const QString said = caption_->text();
    const QModelIndex chosen = table_->currentIndex();
    table_->setCurrentIndex({});  // a frame would say nothing in a picture
    if (policies_.size() > kMostAnswers)
      caption_->setText(
          QString("%1; the first %2 of %3").arg(said).arg(kMostAnswers).arg(policies_.size()));
    for (const auto bars : {Qt::ScrollBarAlwaysOff, Qt::ScrollBarAsNeeded}) {
      table_->setHorizontalScrollBarPolicy(bars);
      table_->setVerticalScrollBarPolicy(bars);
      if (bars == Qt::ScrollBarAlwaysOff) draw_without(*controls_, painter, size);
    }
    caption_->setText(said);
    table_->setCurrentIndex(chosen);
  }
  [[nodiscard]] QSize picture_size() const override {
    if (!has_content()) return kNoteSize;
    const int columns = std::min(model_.columnCount(), static_cast<int>(kMostAnswers) + 2);
    int width = 0;
    for (int c = 0; c < columns; ++c) width += table_->columnWidth(c);
    const QMargins edge = layout()->contentsMargins();
    return {std::max(kNoteSize.width(), width + edge.left() + edge.right()),
            caption_->sizeHint().height() + 6 + table_->horizontalHeader()->sizeHint().height() +
                table_->verticalHeader()->length() + edge.top() + edge.bottom()};
  }

 private:
  void follow() {
    task_->follow(document());
    rebuild();
    for (QWidget* widget : std::initializer_list<QWidget*>{controls_, caption_, table_})
      widget->setVisible(has_content());
    empty_->setVisible(!has_content());
  }

  // Those with the words; without words those that a chart shows of any sample.
  [[nodiscard]] std::vector<std::size_t> wanted(const Evaluation::Task& task) const {
    std::set<std::size_t> visible;
    for (const ShownRun& run : document().runs()) {
      if (run.visible && run.result->evaluation == shown_->first) visible.insert(run.index);
    }
    const QStringList words =
        words_->text().replace(',', ' ').simplified().split(' ', Qt::SkipEmptyParts);
    std::vector<std::size_t> out;
    for (std::size_t p = 0; p < task.policies.size(); ++p) {
      const QString label = QString::fromStdString(task.policies[p].label);
      const bool named = std::any_of(words.begin(), words.end(), [&](const QString& word) {
        return label.contains(word, Qt::CaseInsensitive);
      });
      if (words.isEmpty() ? visible.contains(p) : named) out.push_back(p);
    }
    return out;
  }

  void rebuild() {
    const auto before = shown_;
    shown_ = task_->chosen();
    if (!shown_) return;
    const Evaluation::Task& task = shown_->first->tasks[shown_->second];
    const std::vector<std::size_t> policies = wanted(task);
    if (before == shown_ && policies == policies_) return;
    policies_ = policies;
    set_answers(*shown_->first, shown_->second, policies_, model_);
    caption_->setText(QString("%1: answers, and what was left of the named spans at their ends")
                          .arg(QString::fromStdString(task.name)));
    for (int c = 0; c < model_.columnCount(); ++c) {
      const int name = table_->horizontalHeader()->sectionSizeHint(c) + 8;
      table_->setColumnWidth(c, std::max(kAnswerWidth, name));
    }
  }

  void show_run(std::size_t item) {
    const Evaluation::Task& task = shown_->first->tasks[shown_->second];
    const Evaluation::Sample& sample = task.samples[item / task.policies.size()];
    const auto& runs = document().runs();
    const auto at = std::find_if(runs.begin(), runs.end(), [&](const ShownRun& run) {
      return run.result->evaluation == shown_->first && run.result->sample == sample.result &&
             run.index == item % task.policies.size();
    });
    if (at != runs.end()) document().set_current(static_cast<int>(at - runs.begin()));
  }

  QWidget* controls_;
  TaskChoice* task_;
  QLineEdit* words_;
  QLabel *caption_, *empty_;
  QTableView* table_;
  PlainTable model_;
  std::vector<std::size_t> policies_;
  std::optional<std::pair<EvaluationPtr, std::size_t>> shown_;
};

}  // namespace

View* make_answers_view(Document& document, QWidget* parent) {
  return new AnswersView(document, parent);
}

}  // namespace kvspan::gui
