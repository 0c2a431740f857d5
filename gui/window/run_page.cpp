// SPDX-License-Identifier: Apache-2.0
#include "gui/window/run_page.h"

#include <QComboBox>
#include <QFileDialog>
#include <QFileInfo>
#include <QHBoxLayout>
#include <QLabel>
#include <QLineEdit>
#include <QListWidget>
#include <QProgressBar>
#include <QPushButton>
#include <QShortcut>
#include <QToolButton>
#include <QVBoxLayout>
#include <algorithm>

#include "gui/model/numbers.h"
#include "gui/paint/theme.h"
#include "gui/window/pieces.h"
#include "gui/window/policy_picker.h"
#include "gui/window/run_options.h"

namespace kvspan::gui {
namespace {

constexpr int kRecent = 12;  // traces that are remembered

}  // namespace

RunPage::RunPage(Document& document, QWidget* parent)
    : QWidget(parent), document_(document), simulation_("simulation"), opening_(nullptr) {
  auto* box = new QVBoxLayout(this);
  box->setContentsMargins(8, 8, 8, 8);
  box->setSpacing(5);
  build_trace(box);
  picker_ = new PolicyPicker(
      [this] {
        return PolicyPicker::Setting{trace_, request().options()};
      },
      this);
  box->addWidget(picker_, 5);
  build_list(box);
  options_ = new RunOptions(this);
  box->addWidget(options_);
  build_buttons(box);
  setFocusProxy(picker_);
  show_busy();
  connect_widgets();
  connect_simulation();
  picker_->judge();
}

// Children go after the members, which they must not call any more.
RunPage::~RunPage() {
  for (QObject* child : findChildren<QObject*>()) child->disconnect(this);
}

void RunPage::build_trace(QVBoxLayout* box) {
  box->addWidget(heading("Trace", this));
  auto* row = new QHBoxLayout;
  trace_line_ = named(new QComboBox(this), "trace", "A trace (.safetensors), or one used before");
  trace_line_->setEditable(true);
  trace_line_->setInsertPolicy(QComboBox::NoInsert);
  narrow(trace_line_, 12);
  browse_ = named(new QToolButton(this), "browse", "Choose a trace");
  browse_->setText(QString(QChar(0x2026)));
  browse_->setFocusPolicy(Qt::StrongFocus);
  row->addWidget(trace_line_, 1);
  row->addWidget(browse_);
  box->addLayout(row);
  trace_facts_ = small_label(this);
  box->addWidget(trace_facts_);
}

void RunPage::build_list(QVBoxLayout* box) {
  box->addWidget(heading("To run", this));
  list_ = named(new QListWidget(this), "runs", "Delete takes a policy off the list");
  take_the_rest(list_, 56);
  box->addWidget(list_, 1);
}

void RunPage::build_buttons(QVBoxLayout* box) {
  auto* row = new QHBoxLayout;
  start_ = named(new QPushButton("Run", this), "run",
                 "Run the list (Ctrl+Return with the keyboard in this panel)");
  stop_ = named(new QPushButton("Cancel", this), "cancel", "Stop; what is finished stays (Escape)");
  row->addWidget(start_, 1);
  row->addWidget(stop_);
  box->addLayout(row);
  progress_ = named(new QProgressBar(this), "progress", "");
  progress_->setRange(0, 1000);
  progress_->setTextVisible(true);
  box->addWidget(progress_);
  message_ = small_label(this);
  message_->setObjectName("message");
  box->addWidget(message_);
}

void RunPage::connect_widgets() {
  connect(trace_line_->lineEdit(), &QLineEdit::editingFinished, this, &RunPage::open_trace);
  connect(trace_line_, &QComboBox::activated, this, &RunPage::open_trace);
  connect(browse_, &QToolButton::clicked, this, &RunPage::browse);
  connect(picker_, &PolicyPicker::added, this, &RunPage::add_to_list);
  connect(options_, &RunOptions::passes_changed, picker_, &PolicyPicker::judge_soon);
  connect(options_, &RunOptions::budgets_changed, this,
          [this] { options_->note_budgets(request().specs); });
  auto* remove = new QShortcut(QKeySequence::Delete, list_);
  remove->setContext(Qt::WidgetShortcut);
  connect(remove, &QShortcut::activated, this, [this] {
    delete list_->takeItem(list_->currentRow());
    show_busy();
  });
  connect(start_, &QPushButton::clicked, this, &RunPage::run);
  connect(stop_, &QPushButton::clicked, this, &RunPage::cancel);
  connect(&document_, &Document::runs_changed, this, &RunPage::remove_closed);
  connect(&document_, &Document::current_changed, this, &RunPage::follow_current);
}

void RunPage::connect_simulation() {
  connect(&simulation_, &Simulation::progressed, this, [this](double share, const QString& text) {
    progress_->setValue(static_cast<int>(share * 1000));
    progress_->setFormat(text);
  });
  connect(&simulation_, &Simulation::grown, this,
          [this](const ResultPtr& result, int finished, int total) {
            on_disk_.insert(result->path);
            document_.add(result);
            say(QString("%1 of %2 runs finished").arg(finished).arg(total), false);
          });
  connect(&simulation_, &Simulation::finished, this, [this](const ResultPtr& result) {
    const auto done = result->runs.size();
    say(QString("%1 run%2 finished").arg(done).arg(done == 1 ? "" : "s"), false);
    show_busy();
    emit finished(result);
  });
  connect(&simulation_, &Simulation::failed, this, [this](const QString& line) {
    say(line, true);
    show_busy();
    emit failed(line);
  });
  connect(&simulation_, &Simulation::cancelled, this, [this] {
    say("cancelled; what was finished is kept", false);
    show_busy();
  });
}

void RunPage::apply_theme() {
  set_colour(trace_facts_, bad_trace_ ? theme().bad : theme().faint);
  set_colour(message_, bad_message_ ? theme().bad : theme().faint);
  picker_->apply_theme();
  options_->apply_theme();
}

// ---- The trace ----------------------------------------------------------------------------------

void RunPage::set_trace(const QString& path) {
  trace_line_->setEditText(path);
  open_trace();
}

QStringList RunPage::recent_traces() const {
  QStringList paths;
  for (int i = 0; i < trace_line_->count(); ++i) paths << trace_line_->itemText(i);
  return paths;
}

void RunPage::set_recent_traces(const QStringList& paths) {
  const QString now = trace_line_->currentText();
  trace_line_->clear();
  trace_line_->addItems(paths.mid(0, kRecent));
  trace_line_->setEditText(now);
}

void RunPage::browse() {
  const QString path = QFileDialog::getOpenFileName(
      this, "Trace", QFileInfo(trace_line_->currentText()).path(),
      "Traces (*.safetensors *.safetensors.index.json);;All files (*)");
  if (!path.isEmpty()) set_trace(path);
}

void RunPage::open_trace() {
  const QString path = trace_line_->currentText().trimmed();
  if (trace_ && trace_->name() == path.toStdString()) return;
  trace_.reset();
  if (path.isEmpty()) return;
  opening_.run(
      [file = path.toStdString()](const Background::Cancelled&) {
        return std::make_shared<const Trace>(Trace::open(file));
      },
      [this, path](const std::shared_ptr<const Trace>& opened) { accept_trace(path, opened); },
      [this](const QString& line) { say_of_trace(line, true); });
}

void RunPage::accept_trace(const QString& path, const std::shared_ptr<const Trace>& opened) {
  trace_ = opened;
  QStringList paths = recent_traces();
  paths.removeAll(path);
  paths.prepend(path);
  set_recent_traces(paths);
  const TraceMeta& m = trace_->meta();
  say_of_trace(QString("%1 tokens, prompt %2; %3 of %4 layers; %5 KV heads")
                   .arg(count_text(m.tokens), count_text(m.prompt_tokens))
                   .arg(m.layers)
                   .arg(m.model_layers)
                   .arg(m.kv_heads),
               false);
  options_->set_rows(static_cast<int>(std::min<std::int64_t>(m.tokens, 1 << 30)));
}

void RunPage::say_of_trace(const QString& text, bool bad) {
  trace_facts_->setText(breakable(text));
  bad_trace_ = bad;
  if (!bad && bad_message_) message_->clear();
  apply_theme();
  picker_->judge();
}

// A result that is looked at brings its trace, which may have moved since it was written.
void RunPage::follow_current() {
  if (!trace_line_->currentText().isEmpty() || document_.current_run() == nullptr) return;
  const auto there = document_.trace_of(*document_.current_run()->result);
  if (there) set_trace(QString::fromStdString(there->name()));
}

// ---- The list -----------------------------------------------------------------------------------

void RunPage::add_to_list() {
  const QString spec = picker_->spec();
  if (spec.isEmpty()) return;
  if (list_->findItems(spec, Qt::MatchExactly).isEmpty()) list_->addItem(spec);
  list_->setCurrentRow(list_->count() - 1);
  show_busy();
}

SimulationRequest RunPage::request() const {
  SimulationRequest out = options_->request();
  out.trace = trace_line_->currentText().trimmed().toStdString();
  for (int i = 0; i < list_->count(); ++i) {
    out.specs.push_back(list_->item(i)->text().toStdString());
  }
  return out;
}

void RunPage::run() {
  if (list_->count() == 0) add_to_list();
  const SimulationRequest wanted = request();
  if (wanted.trace.empty()) return say("choose a trace first", true);
  if (wanted.specs.empty()) return say("add a policy to the list first", true);
  start(wanted);
}

void RunPage::start(const SimulationRequest& wanted) {
  simulation_.set_name(QString("simulation %1").arg(++runs_));
  simulation_.start(wanted);
  say("", false);
  show_busy();
}

// Files of results that nobody can open any more.
void RunPage::remove_closed() {
  std::set<std::filesystem::path> open;
  for (const ResultPtr& result : document_.results()) open.insert(result->path);
  if (simulation_.busy()) open.insert(simulation_.path());
  std::erase_if(on_disk_, [&](const std::filesystem::path& path) {
    if (open.contains(path)) return false;
    remove_temporary(path);
    return true;
  });
}

void RunPage::say(const QString& text, bool bad) {
  message_->setText(breakable(text));
  bad_message_ = bad;
  apply_theme();
}

void RunPage::show_busy() {
  const bool busy = simulation_.busy();
  start_->setText(list_->count() < 2 ? "Run" : QString("Run %1 policies").arg(list_->count()));
  stop_->setEnabled(busy);
  progress_->setVisible(busy);
  if (!busy) progress_->setValue(0);
  options_->note_budgets(request().specs);
}

}  // namespace kvspan::gui
