// SPDX-License-Identifier: Apache-2.0
// Score against footprint, of the model under its policies: what `kvspan eval` measured.
#include <QEvent>
#include <QHBoxLayout>
#include <QLabel>
#include <QVBoxLayout>
#include <algorithm>

#include "gui/model/evaluation.h"
#include "gui/views/chart_and_table.h"
#include "gui/views/task_choice.h"
#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

class ScoresView final : public View {
 public:
  ScoresView(Document& document, QWidget* parent) : View(document, parent) {
    auto* box = rows_of(*this);
    controls_ = new QWidget(this);
    auto* row = row_in(*controls_);
    task_ = new TaskChoice(controls_);
    readout_ = text_line(controls_, "readout");
    readout_->setTextInteractionFlags(Qt::TextSelectableByMouse);
    row->addWidget(task_);
    row->addWidget(readout_, 1);
    box->addWidget(controls_);
    parts_ = new ChartAndTable(&table_model_, this);
    box->addWidget(parts_, 1);
    empty_ = new QLabel("Open what kvspan eval --out wrote.", this);
    empty_->setAlignment(Qt::AlignCenter);
    box->addWidget(empty_, 1);
    setFocusProxy(parts_);
    parts_->plot().cursor_moved = [this] { readout_->setText(parts_->plot().readout()); };
    parts_->plot().chosen = [this](int policy) { show_run(static_cast<std::size_t>(policy)); };
    parts_->row_chosen = [this](int line) { parts_->plot().set_line(line); };
    connect(task_, &QComboBox::activated, this, [this] { rebuild(); });
    connect(&document, &Document::runs_changed, this, [this] { follow(); });
    follow();
  }

  [[nodiscard]] QString name() const override { return "scores"; }
  [[nodiscard]] QString title() const override { return "Scores"; }
  [[nodiscard]] QString help() const override {
    return "The model's score at a task against the KV footprint of every policy, with 95 % "
           "intervals over the samples; the line is the share of the full cache's score that a "
           "critical footprint keeps. A click on a point shows the policy's run of the first "
           "sample, one in the table its curve.";
  }
  [[nodiscard]] bool has_content() const override { return task_->chosen().has_value(); }
  [[nodiscard]] std::string csv() const override {
    const auto task = task_->chosen();
    return task ? scores_csv(*task->first, task->second) : "\n";
  }
  void draw(QPainter& painter, const QSize& size) override {
    parts_->set_paper(true);
    draw_without(*controls_, painter, size);
    parts_->set_paper(false);
  }
  [[nodiscard]] QSize picture_size() const override {
    return has_content() ? parts_->picture_size().grownBy(layout()->contentsMargins()) : kNoteSize;
  }

 protected:
  void changeEvent(QEvent* event) override {
    if (event->type() == QEvent::PaletteChange) parts_->plot().update();
    View::changeEvent(event);
  }

 private:
  // Runs that are shown, hidden or simulated change nothing here.
  void follow() {
    task_->follow(document());
    if (task_->chosen() != shown_) rebuild();
    parts_->setVisible(has_content());
    controls_->setVisible(has_content());
    empty_->setVisible(!has_content());
  }

  void rebuild() {
    shown_ = task_->chosen();
    if (!shown_) return;
    const Evaluation& evaluation = *shown_->first;
    parts_->plot().set(score_chart(evaluation, shown_->second));
    set_criticals(evaluation, shown_->second, table_model_);
    parts_->fit_table();
    readout_->clear();
  }

  void show_run(std::size_t policy) {
    const auto& runs = document().runs();
    const Evaluation::Task& task = shown_->first->tasks[shown_->second];
    const auto at = std::find_if(runs.begin(), runs.end(), [&](const ShownRun& run) {
      return run.result->evaluation == shown_->first &&
             run.result->sample == task.samples.front().result && run.index == policy;
    });
    if (at != runs.end()) document().set_current(static_cast<int>(at - runs.begin()));
  }

  QWidget* controls_;
  TaskChoice* task_;
  QLabel *readout_, *empty_;
  PlainTable table_model_;
  ChartAndTable* parts_;
  std::optional<std::pair<EvaluationPtr, std::size_t>> shown_;
};

}  // namespace

View* make_scores_view(Document& document, QWidget* parent) {
  return new ScoresView(document, parent);
}

}  // namespace kvspan::gui
