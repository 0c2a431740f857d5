// SPDX-License-Identifier: Apache-2.0
#include "gui/views/sweep_view.h"

#include <QApplication>
#include <QClipboard>
#include <QComboBox>
#include <QHBoxLayout>
#include <QLabel>
#include <QLineEdit>
#include <QPushButton>
#include <QVBoxLayout>

#include "gui/model/numbers.h"

namespace kvspan::gui {

SweepView::SweepView(Document& document, QWidget* parent) : View(document, parent) {
  auto* box = rows_of(*this);
  build_bar();
  box->addWidget(bar_);
  empty_ = new QLabel("Open the folder of a sweep: kvspan sweep ... --out FOLDER", this);
  empty_->setAlignment(Qt::AlignCenter);
  box->addWidget(empty_, 1);
  build_strip();
  box->addWidget(strip_);
  connect(&state(), &SweepState::changed, this, [this] {
    follow();
    if (is_ready()) emit ready();
  });
  connect(&state(), &SweepState::cell_changed, this, [this] {
    show_cell();
    cell_changed();
  });
}

void SweepView::build_bar() {
  bar_ = new QWidget(this);
  bar_layout_ = row_in(*bar_);
  words_ = new QLineEdit(bar_);
  words_->setPlaceholderText("Methods with ...");
  words_->setToolTip("Only methods with one of these words in their names");
  words_->setAccessibleName("Methods with these words");
  words_->setObjectName("words");
  words_->setClearButtonEnabled(true);
  words_->setMaximumWidth(190);
  bar_layout_->addWidget(words_);
  count_ = new QLabel(bar_);
  count_->setObjectName("count");
  bar_layout_->addStretch(1);
  bar_layout_->addWidget(count_);
  connect(words_, &QLineEdit::textEdited, this, [this](const QString& text) {
    if (!state().sweep()) return;
    SweepFilter filter = state().filter();
    filter_methods(filter, *state().sweep(), text);
    state().set_filter(filter);
  });
}

void SweepView::build_strip() {
  strip_ = new QWidget(this);
  auto* row = row_in(*strip_);
  readout_ = text_line(strip_, "readout");
  readout_->setTextInteractionFlags(Qt::TextSelectableByMouse);
  readout_->setMinimumHeight(2 * fontMetrics().height() + 2);
  open_ = new QPushButton("Open &run", strip_);
  open_->setObjectName("open_run");
  open_->setToolTip("Replays the chosen cell, and shows its memory over time (Enter)");
  copy_ = new QPushButton("Copy c&ommand", strip_);
  copy_->setObjectName("copy_command");
  copy_->setToolTip("The command line that does the same");
  row->addWidget(readout_, 1);
  row->addWidget(open_);
  row->addWidget(copy_);
  connect(open_, &QPushButton::clicked, this, [this] { state().open_run(); });
  connect(copy_, &QPushButton::clicked, this, [this] { copy_command(); });
}

void SweepView::set_content(QWidget* content) {
  content_ = content;
  static_cast<QVBoxLayout*>(layout())->insertWidget(1, content, 1);
  setFocusProxy(content);
  follow();
}

void SweepView::add_control(QWidget* control) {
  bar_layout_->insertWidget(bar_layout_->indexOf(words_), control);
}

void SweepView::draw(QPainter& painter, const QSize& size) {
  strip_->hide();
  draw_without(*bar_, painter, size);
  strip_->show();
}

void SweepView::showEvent(QShowEvent* /*event*/) {
  if (stale_) follow();
}

void SweepView::changeEvent(QEvent* event) {
  if (event->type() == QEvent::PaletteChange && content_ != nullptr) follow();
  View::changeEvent(event);
}

void SweepView::follow() {
  stale_ = !isVisible();  // what is not seen is not computed
  const bool any = state().sweep() != nullptr;
  content_->setVisible(any);
  bar_->setVisible(any);
  strip_->setVisible(any);
  empty_->setVisible(!any);
  if (!any || stale_) return;
  if (chosen_of_ != state().sweep()) make_choices();
  follow_filter();
  rebuild();
  show_cell();
}

// One box for each parameter that the sweep turns.
void SweepView::make_choices() {
  for (const Choice& choice : choices_) delete choice.box;
  choices_.clear();
  chosen_of_ = state().sweep();
  for (int p = 0; p < Sweep::parameter_count; ++p) {
    const auto parameter = static_cast<Sweep::Parameter>(p);
    if (parameter == Sweep::method || !chosen_of_->varies(parameter)) continue;
    auto* box = new QComboBox(bar_);
    const QString title = title_of(parameter);
    box->addItem("any " + title);
    for (const QString& text : chosen_of_->parameters[parameter].texts) box->addItem(text);
    box->setAccessibleName(title);
    box->setObjectName(QString::fromStdString(sweep_parameter_names()[parameter]));
    box->setSizeAdjustPolicy(QComboBox::AdjustToMinimumContentsLengthWithIcon);
    box->setMinimumContentsLength(8);
    box->setToolTip("Only cells of this " + title);
    const std::size_t at = choices_.size();
    connect(box, &QComboBox::activated, this, [this, at](int index) { choose(at, index); });
    bar_layout_->insertWidget(bar_layout_->indexOf(words_) + 1 + static_cast<int>(at), box);
    choices_.push_back({parameter, box});
  }
}

void SweepView::choose(std::size_t choice, int index) {
  SweepFilter filter = state().filter();
  auto& wanted = filter.wanted[choices_[choice].parameter];
  if (index <= 0) {
    wanted.reset();
  } else {
    wanted = std::set<std::int32_t>{index - 1};
  }
  state().set_filter(filter);
}

void SweepView::follow_filter() {
  const SweepFilter& filter = state().filter();
  for (const Choice& choice : choices_) {
    const auto& wanted = filter.wanted[choice.parameter];
    const bool one = wanted && wanted->size() == 1;
    choice.box->setPlaceholderText(wanted ? QString("%1 values").arg(wanted->size()) : QString());
    choice.box->setCurrentIndex(!wanted ? 0 : one ? *wanted->begin() + 1 : -1);
  }
  if (!filter.wanted[Sweep::method]) {
    words_->clear();
  } else if (words_->text().isEmpty()) {
    words_->setPlaceholderText(QString("%1 methods").arg(filter.wanted[Sweep::method]->size()));
  }
  count_->setText(QString("%1 of %2 cells")
                      .arg(count_text(static_cast<std::int64_t>(state().taken())),
                           count_text(static_cast<std::int64_t>(chosen_of_->cells()))));
}

void SweepView::say(const QString& text) {
  said_ = text;
  show_cell();
}

void SweepView::show_cell() {
  const bool chosen = state().sweep() != nullptr && state().cell() >= 0;
  open_->setEnabled(chosen);
  copy_->setEnabled(chosen);
  QString text = said_;
  if (text.isEmpty() && chosen) {
    const auto cell = static_cast<std::size_t>(state().cell());
    text = cell_text(*state().sweep(), cell) + "\n" + figures_text(*state().sweep(), cell);
  }
  readout_->setText(text);
  readout_->setToolTip(tip_text(text));
}

void SweepView::copy_command() {
  const auto cell = static_cast<std::size_t>(state().cell());
  QApplication::clipboard()->setText(shell_text(request_of(*state().sweep(), cell).command()));
}

}  // namespace kvspan::gui
