// SPDX-License-Identifier: Apache-2.0
#include "gui/window/main_window.h"

#include <QAction>
#include <QActionGroup>
#include <QApplication>
#include <QCloseEvent>
#include <QDir>
#include <QDragEnterEvent>
#include <QFileDialog>
#include <QFileInfo>
#include <QHBoxLayout>
#include <QLabel>
#include <QMenuBar>
#include <QMessageBox>
#include <QMimeData>
#include <QSettings>
#include <QSplitter>
#include <QStatusBar>
#include <QTabWidget>
#include <QToolButton>
#include <QVBoxLayout>
#include <algorithm>
#include <fstream>
#include <variant>

#include <nlohmann/json.hpp>

#include "gui/model/numbers.h"
#include "gui/model/run_table.h"
#include "gui/model/session.h"
#include "gui/model/simulation.h"
#include "gui/paint/theme.h"
#include "gui/window/command_palette.h"
#include "gui/window/map_guard.h"
#include "gui/window/run_list.h"
#include "gui/window/simulate_panel.h"
#include "sim/base/error.h"
#include "sim/trace/safetensors.h"

namespace kvspan::gui {
namespace {

constexpr int kMostRecent = 12;
constexpr qsizetype kMostMessages = 5;
constexpr int kColourSlots = 32;  // colours times dashes of the palette

// A result's file and those that it names.
QStringList files_of(const Result& result) {
  QStringList files{QString::fromStdString(result.path.string())};
  if (result.json == nullptr) return files;
  const nlohmann::json named = result.json->value("files", nlohmann::json::object());
  for (const char* which : {"timeline", "lifetimes"}) {
    if (!named.is_object() || !named.contains(which) || !named[which].is_string()) continue;
    const auto path = companion_path(result.path, named[which].get<std::string>());
    if (QFileInfo::exists(QString::fromStdString(path.string()))) {
      files << QString::fromStdString(path.string());
    }
  }
  return files;
}

QString file_filter() { return "Results and traces (*.json *.safetensors);;All files (*)"; }

}  // namespace

MainWindow::MainWindow(const QString& session_file, QWidget* parent)
    : QMainWindow(parent), session_file_(session_file) {
  setObjectName("main_window");
  setAcceptDrops(true);
  build_widgets();
  build_actions();
  update_title();
  connect(&document_, &Document::runs_changed, this, &MainWindow::update_title);
  connect(&document_, &Document::current_changed, this, &MainWindow::update_title);
  connect(&watcher_, &QFileSystemWatcher::fileChanged, this, [this](const QString& path) {
    const auto results = document_.results();
    const auto shows = [&](const ResultPtr& result) { return files_of(*result).contains(path); };
    const bool gone_json =
        std::any_of(results.begin(), results.end(), [&](const ResultPtr& result) {
          return QString::fromStdString(result->path.string()) == path;
        });
    if (!gone_json && std::none_of(results.begin(), results.end(), shows)) return;
    const bool there = QFileInfo::exists(path);
    show_message(there ? QString("%1 has changed on disk; F5 reads it again").arg(path)
                       : QString("%1 is gone from disk; what was read of it stays").arg(path));
  });
  autosave_.setInterval(5000);
  connect(&autosave_, &QTimer::timeout, this, [this, lost = pages_lost()]() mutable {
    save_session();
    if (pages_lost() == lost) return;
    lost = pages_lost();
    show_message(
        "A file was cut short by another program while it was shown; what it lost is "
        "drawn as nothing. Close it, or press F5 to read it again");
  });
  autosave_.start();
}

// Views go before the document that they show.
MainWindow::~MainWindow() {
  disconnect(qApp, nullptr, this, nullptr);
  delete takeCentralWidget();
}

void MainWindow::build_widgets() {
  resize(1280, 800);
  columns_ = new QSplitter(Qt::Horizontal);
  charts_ = new QSplitter(Qt::Vertical);
  side_ = new QTabWidget;
  side_->setDocumentMode(true);
  tabs_ = new QTabWidget;
  tabs_->setObjectName("views");
  tabs_->setDocumentMode(true);

  run_list_ = new RunList(document_, this);
  auto* runs = new QWidget;
  auto* runs_layout = new QVBoxLayout(runs);
  runs_layout->setContentsMargins(0, 0, 0, 0);
  runs_layout->setSpacing(0);
  auto* heading = new QLabel;
  heading->setObjectName("run_heading");
  heading->setContentsMargins(28, 6, 8, 6);
  runs_layout->addWidget(heading);
  runs_layout->addWidget(run_list_);
  // What the second line of each run says.
  const auto say = [this, heading] {
    const Rows rows = document_.selection();
    if (rows.empty()) {
      heading->setText("nothing is open: Ctrl+O, or drop files here");
    } else if (rows.size() > 1) {
      heading->setText(QString("rows %1 to %2: begin %3 end, difference")
                           .arg(count_text(rows.begin), count_text(rows.end - 1), QChar(0x2192)));
    } else {
      heading->setText(
          QString("KV footprint, retained attention, held in row %1").arg(count_text(rows.begin)));
    }
  };
  connect(&document_, &Document::selection_changed, this, say);
  say();
  side_->addTab(runs, "Runs");

  simulate_ = new SimulatePanel(document_, this);
  simulate_->set_recent_traces(QSettings().value("recent_traces").toStringList());
  side_->addTab(simulate_, "Simulate");
  connect(simulate_, &SimulatePanel::failed, this, &MainWindow::show_message);
  connect(simulate_, &SimulatePanel::finished, this,
          [this] { QSettings().setValue("recent_traces", simulate_->recent_traces()); });

  views_ = make_views(document_, this);
  auto* upper = new QWidget;
  auto* upper_layout = new QVBoxLayout(upper);
  upper_layout->setContentsMargins(0, 0, 0, 0);
  upper_layout->setSpacing(0);
  strip_ = new QWidget;
  strip_->setObjectName("message_strip");
  strip_->setAutoFillBackground(true);
  auto* strip_layout = new QHBoxLayout(strip_);
  strip_layout->setContentsMargins(8, 4, 4, 4);
  strip_text_ = new QLabel;
  strip_text_->setTextFormat(Qt::PlainText);
  strip_text_->setTextInteractionFlags(Qt::TextSelectableByMouse);
  strip_text_->setWordWrap(true);
  auto* close = new QToolButton;
  close->setText("x");
  close->setAutoRaise(true);
  close->setAccessibleName("Close the message");
  connect(close, &QToolButton::clicked, strip_, &QWidget::hide);
  strip_layout->addWidget(strip_text_, 1);
  strip_layout->addWidget(close);
  strip_->hide();
  upper_layout->addWidget(strip_);
  upper_layout->addWidget(views_.front(), 1);
  for (std::size_t i = 1; i < views_.size(); ++i) tabs_->addTab(views_[i], views_[i]->title());

  charts_->addWidget(upper);
  charts_->addWidget(tabs_);
  charts_->setSizes({430, 330});
  columns_->addWidget(side_);
  columns_->addWidget(charts_);
  columns_->setSizes({350, 930});
  columns_->setStretchFactor(1, 1);
  columns_->setChildrenCollapsible(false);
  setCentralWidget(columns_);

  hint_ = new QLabel;
  hint_->setContentsMargins(8, 0, 8, 0);
  statusBar()->addWidget(hint_, 1);
  const auto hint = [this] { hint_->setText(current_view()->help()); };
  connect(tabs_, &QTabWidget::currentChanged, this, hint);
  connect(qApp, &QApplication::focusChanged, this, hint);
  hint();
}

QAction* MainWindow::add_action(QMenu* menu, const QString& text, const QKeySequence& key,
                                const std::function<void()>& run) {
  QAction* action = menu->addAction(text);
  action->setShortcut(key);
  connect(action, &QAction::triggered, this, run);
  return action;
}

void MainWindow::build_actions() {
  QMenu* file = menuBar()->addMenu("&File");
  add_action(file, "&Open...", QKeySequence::Open, [this] { choose_files(); });
  recent_menu_ = file->addMenu("Open &recent");
  connect(recent_menu_, &QMenu::aboutToShow, this, &MainWindow::show_recent);
  add_action(file, "&Read again", Qt::Key_F5, [this] { reload(); });
  add_action(file, "&Close result", QKeySequence::Close, [this] {
    if (const ShownRun* shown = document_.current_run()) document_.close(ResultPtr(shown->result));
  });
  file->addSeparator();
  add_action(file, "&Save result as...", Qt::CTRL | Qt::SHIFT | Qt::Key_S,
             [this] { save_result(); });
  add_action(file, "&Export view...", Qt::CTRL | Qt::Key_E, [this] { export_current_view(); });
  file->addSeparator();
  add_action(file, "&Quit", QKeySequence::Quit, [this] { close(); });

  QMenu* simulate = menuBar()->addMenu("&Run");
  add_action(simulate, "Choose &policies to simulate", Qt::CTRL | Qt::Key_R, [this] {
    side_->setCurrentWidget(simulate_);
    simulate_->setFocus();
  });
  add_action(simulate, "&Start the simulation", Qt::CTRL | Qt::SHIFT | Qt::Key_R,
             [this] { simulate_->run(); });
  add_action(simulate, "&Cancel the simulation", Qt::CTRL | Qt::Key_Period,
             [this] { simulate_->cancel(); });

  QMenu* go = menuBar()->addMenu("&Go");
  add_action(go, "&Memory over time", Qt::CTRL | Qt::Key_0,
             [this] { show_view(views_.front()->name()); });
  for (std::size_t i = 1; i < views_.size(); ++i) {
    add_action(go, views_[i]->title(), QKeySequence(QString("Ctrl+%1").arg(i)),
               [this, i] { show_view(views_[i]->name()); });
  }
  go->addSeparator();
  add_action(go, "&Runs", Qt::CTRL | Qt::Key_L, [this] {
    side_->setCurrentIndex(0);
    run_list_->setFocus();
  });
  add_action(go, "Peak of the current run", Qt::CTRL | Qt::Key_P, [this] {
    if (const ShownRun* shown = document_.current_run()) {
      document_.set_selection({peak_row(*shown), peak_row(*shown) + 1});
    }
  });
  add_action(go, "Next run", Qt::CTRL | Qt::Key_Down,
             [this] { document_.set_current(document_.current() + 1); });
  add_action(go, "Previous run", Qt::CTRL | Qt::Key_Up,
             [this] { document_.set_current(document_.current() - 1); });

  QMenu* view = menuBar()->addMenu("&View");
  add_action(view, "&Command palette...", Qt::CTRL | Qt::Key_K, [this] { show_palette(); });
  view->addSeparator();
  const auto display = [this](auto change) {
    return [this, change] {
      Display now = document_.display();
      change(now);
      document_.set_display(now);
    };
  };
  add_action(view, "Count &bytes", {}, display([](Display& d) { d.quantity = Quantity::bytes; }));
  add_action(view, "Count &entries", {},
             display([](Display& d) { d.quantity = Quantity::entries; }));
  add_action(view, "Count &percent of a full cache", {},
             display([](Display& d) { d.quantity = Quantity::percent; }));
  add_action(view, "Show retained &attention", {},
             display([](Display& d) { d.quantity = Quantity::mass; }));
  add_action(view, "&Logarithmic scale", {}, display([](Display& d) { d.log = !d.log; }));
  add_action(view, "Lines of all runs", {}, display([](Display& d) { d.stack = Stack::none; }));
  add_action(view, "Stack by layer", {}, display([](Display& d) { d.stack = Stack::layer; }));
  add_action(view, "Stack by head class", {},
             display([](Display& d) { d.stack = Stack::head_class; }));
  add_action(view, "Stack by state", {}, display([](Display& d) { d.stack = Stack::state; }));
  view->addSeparator();
  add_action(view, "Sort runs as opened", {}, [this] { run_list_->sort_by(-1); });
  add_action(view, "Sort runs by footprint", {},
             [this] { run_list_->sort_by(RunTable::footprint); });
  add_action(view, "Sort runs by peak memory", {},
             [this] { run_list_->sort_by(RunTable::peak_memory); });
  add_action(view, "Sort runs by retained attention", {},
             [this] { run_list_->sort_by(RunTable::retained); });
  add_action(view, "Sort runs by what they hold now", {},
             [this] { run_list_->sort_by(RunTable::at_end); });
  view->addSeparator();
  add_action(view, "&Show or hide the current run", Qt::CTRL | Qt::Key_H, [this] {
    if (const ShownRun* shown = document_.current_run()) {
      document_.set_visible(static_cast<std::size_t>(document_.current()), !shown->visible);
    }
  });
  add_action(view, "Show all runs", Qt::CTRL | Qt::SHIFT | Qt::Key_H, [this] {
    for (std::size_t i = 0; i < document_.runs().size(); ++i) document_.set_visible(i, true);
  });
  add_action(view, "Show only the current run and the baseline", Qt::CTRL | Qt::Key_J, [this] {
    for (std::size_t i = 0; i < document_.runs().size(); ++i) {
      const auto run = static_cast<int>(i);
      document_.set_visible(i, run == document_.current() || run == document_.baseline());
    }
  });
  add_action(view, "&Next colour for the current run", Qt::CTRL | Qt::SHIFT | Qt::Key_C, [this] {
    if (const ShownRun* shown = document_.current_run()) {
      document_.set_colour(static_cast<std::size_t>(document_.current()),
                           (shown->colour + 1) % kColourSlots);
    }
  });
  add_action(view, "&Compare with the current run (make it the baseline)", Qt::CTRL | Qt::Key_B,
             [this] { document_.set_baseline(document_.current()); });
  add_action(view, "Zoom &out", Qt::CTRL | Qt::Key_Home, [this] { document_.zoom_out(); });
  add_action(view, "&Zoom to the selection", Qt::CTRL | Qt::SHIFT | Qt::Key_Z,
             [this] { document_.set_zoom(document_.selection()); });
  view->addSeparator();
  add_action(view, "&Dark colours", Qt::CTRL | Qt::Key_D, [this] { set_dark(!theme().dark); });

  QMenu* help = menuBar()->addMenu("&Help");
  add_action(help, "&Keys and what views show", QKeySequence::HelpContents, [this] {
    QString text;
    for (const View* v : views_) text += QString("<p><b>%1.</b> %2</p>").arg(v->title(), v->help());
    text += "<p>Ctrl+K lists every command with its key. Files can be dropped on the window.</p>";
    auto* box = new QMessageBox(QMessageBox::NoIcon, "kvspan-viewer", text, QMessageBox::Ok, this);
    box->setAttribute(Qt::WA_DeleteOnClose);
    box->open();
  });
}

View* MainWindow::current_view() const {
  const auto shown = static_cast<std::size_t>(std::max(0, tabs_->currentIndex())) + 1;
  for (QWidget* w = QApplication::focusWidget(); w != nullptr; w = w->parentWidget()) {
    if (w == views_.front()) return views_.front();
  }
  return views_[shown];
}

void MainWindow::show_view(const QString& name) {
  for (View* view : views_) {
    if (view->name() != name) continue;
    if (view != views_.front()) tabs_->setCurrentWidget(view);
    view->setFocus();
  }
}

// ---- Files ----------------------------------------------------------------------------------------

void MainWindow::open(const QStringList& paths, const std::function<void()>& afterwards) {
  to_open_ += paths;
  if (afterwards) after_opening_.push_back(afterwards);
  if (!opener_.busy()) open_next();
}

// One at a time, so that results come in the order in which they were asked for.
void MainWindow::open_next() {
  if (to_open_.isEmpty()) {
    for (const auto& afterwards : std::exchange(after_opening_, {})) afterwards();
    return;
  }
  const QString path = to_open_.takeFirst();
  statusBar()->showMessage(QString("reading %1 ...").arg(path));
  opener_.run(
      [file = path.toStdString()](const Background::Cancelled&) -> ResultPtr {
        return kind_of(file) == FileKind::trace ? nullptr : open_result(file);
      },
      [this, path](ResultPtr result) {
        statusBar()->clearMessage();
        accept(path, std::move(result));
        emit opened(path);
        open_next();
      },
      [this](const QString& message) {
        statusBar()->clearMessage();
        show_message(message);
        emit failed(message);
        open_next();
      });
}

void MainWindow::accept(const QString& path, ResultPtr result) {
  remember(path);
  if (result == nullptr) {
    simulate_->set_trace(path);
    side_->setCurrentWidget(simulate_);
    statusBar()->showMessage(QString("%1 is a trace: choose policies and run them").arg(path),
                             8000);
    return;
  }
  for (const std::string& warning : result->warnings) show_message(QString::fromStdString(warning));
  watcher_.addPaths(files_of(*result));
  document_.add(std::move(result));
}

void MainWindow::choose_files() {
  auto* dialog = new QFileDialog(this, "Open results or traces", QString(), file_filter());
  dialog->setAttribute(Qt::WA_DeleteOnClose);
  dialog->setFileMode(QFileDialog::ExistingFiles);
  connect(dialog, &QFileDialog::filesSelected, this,
          [this](const QStringList& paths) { open(paths); });
  dialog->open();
}

void MainWindow::reload() {
  QStringList paths;
  for (const ResultPtr& result : document_.results()) {
    paths << QString::fromStdString(result->path.string());
  }
  strip_->hide();
  open(paths);
}

void MainWindow::remember(const QString& path) {
  QSettings settings;
  QStringList recent = settings.value("recent").toStringList();
  const QString absolute = QFileInfo(path).absoluteFilePath();
  recent.removeAll(absolute);
  recent.prepend(absolute);
  settings.setValue("recent", recent.mid(0, kMostRecent));
}

void MainWindow::show_recent() {
  recent_menu_->clear();
  const QStringList recent = QSettings().value("recent").toStringList();
  for (const QString& path : recent) {
    connect(recent_menu_->addAction(path), &QAction::triggered, this,
            [this, path] { open({path}); });
  }
  if (recent.isEmpty()) recent_menu_->addAction("none yet")->setEnabled(false);
}

void MainWindow::export_current_view() {
  View* view = current_view();
  auto* dialog =
      new QFileDialog(this, QString("Export \"%1\"").arg(view->title()), view->name() + ".svg",
                      "Vector picture (*.svg);;Picture (*.png);;Numbers (*.csv)");
  dialog->setAttribute(Qt::WA_DeleteOnClose);
  dialog->setAcceptMode(QFileDialog::AcceptSave);
  dialog->setDefaultSuffix("svg");
  connect(dialog, &QFileDialog::filterSelected, dialog, [dialog](const QString& filter) {
    dialog->setDefaultSuffix(filter.mid(filter.indexOf("*.") + 2, 3));
  });
  connect(dialog, &QFileDialog::fileSelected, this, [this, view](const QString& path) {
    try {
      export_view(*view, path, view->size().expandedTo({900, 420}), 2);
      statusBar()->showMessage(QString("wrote %1").arg(path), 8000);
    } catch (const Error& error) {
      show_message(error.what());
    }
  });
  dialog->open();
}

void MainWindow::save_result() {
  const ShownRun* shown = document_.current_run();
  if (shown == nullptr) return;
  auto* dialog = new QFileDialog(this, "Save result as", "result.json", "Result (*.json)");
  dialog->setAttribute(Qt::WA_DeleteOnClose);
  dialog->setAcceptMode(QFileDialog::AcceptSave);
  dialog->setDefaultSuffix("json");
  connect(dialog, &QFileDialog::fileSelected, this,
          [this, result = ResultPtr(shown->result)](const QString& path) {
            try {
              kvspan::gui::save_result(*result, path.toStdString());
              statusBar()->showMessage(QString("wrote %1").arg(path), 8000);
              if (is_temporary(result->path)) {
                document_.close(result);
                open({path});
              }
            } catch (const Error& error) {
              show_message(error.what());
            }
          });
  dialog->open();
}

void MainWindow::dragEnterEvent(QDragEnterEvent* event) {
  if (event->mimeData()->hasUrls()) event->acceptProposedAction();
}

void MainWindow::dropEvent(QDropEvent* event) {
  QStringList paths;
  for (const QUrl& url : event->mimeData()->urls()) {
    if (url.isLocalFile()) paths << url.toLocalFile();
  }
  if (paths.isEmpty()) show_message("only files of this machine can be opened");
  open(paths);
  event->acceptProposedAction();
}

// ---- Session --------------------------------------------------------------------------------------

void MainWindow::save_session() {
  if (session_file_.isEmpty() || opener_.busy()) return;
  std::vector<std::filesystem::path> temporary;
  for (const ResultPtr& result : document_.results()) {
    if (is_temporary(result->path)) temporary.push_back(result->path);
  }
  nlohmann::json session = session_of(document_, temporary);
  session["window"] = {
      {"geometry", saveGeometry().toBase64().toStdString()},
      {"columns", columns_->saveState().toBase64().toStdString()},
      {"charts", charts_->saveState().toBase64().toStdString()},
      {"view", views_[static_cast<std::size_t>(tabs_->currentIndex()) + 1]->name().toStdString()},
      {"dark", theme().dark}};
  try {
    const std::string text = session.dump(1) + "\n";
    if (text == saved_session_) return;
    QDir().mkpath(QFileInfo(session_file_).absolutePath());
    write_file_atomically(session_file_.toStdString(), text);
    saved_session_ = text;
  } catch (const Error& error) {
    show_message(error.what());
    session_file_.clear();  // said once
  }
}

bool MainWindow::restore_session() {
  if (session_file_.isEmpty()) return false;
  std::ifstream in(session_file_.toStdString());
  const nlohmann::json session = nlohmann::json::parse(in, nullptr, false);
  if (!session.is_object()) return false;
  const nlohmann::json window = session.value("window", nlohmann::json::object());
  const auto bytes = [&](const char* key) {
    const auto found = window.is_object() ? window.value(key, nlohmann::json()) : nlohmann::json();
    return found.is_string()
               ? QByteArray::fromBase64(QByteArray::fromStdString(found.get<std::string>()))
               : QByteArray();
  };
  restoreGeometry(bytes("geometry"));
  columns_->restoreState(bytes("columns"));
  charts_->restoreState(bytes("charts"));
  if (window.is_object()) {
    const auto view = window.value("view", nlohmann::json());
    if (view.is_string()) show_view(QString::fromStdString(view.get<std::string>()));
    if (window.value("dark", nlohmann::json()) == true) set_dark(true);
  }
  QStringList paths;
  for (const auto& file : files_of(session)) paths << QString::fromStdString(file.string());
  open(paths, [this, session] { restore(session, document_); });
  return !paths.isEmpty();
}

void MainWindow::closeEvent(QCloseEvent* event) {
  save_session();
  event->accept();
}

// ---- Appearance -----------------------------------------------------------------------------------

void MainWindow::show_message(const QString& text) {
  QPalette colours = strip_->palette();
  colours.setColor(QPalette::Window, theme().bad);
  colours.setColor(QPalette::WindowText, text_on(theme().bad));
  strip_->setPalette(colours);
  QStringList lines = strip_->isHidden() ? QStringList() : strip_text_->text().split('\n');
  lines.removeAll(text);
  lines << text;
  strip_text_->setText(lines.mid(std::max<qsizetype>(0, lines.size() - kMostMessages)).join('\n'));
  strip_->show();
}

QString MainWindow::message() const { return strip_->isHidden() ? QString() : strip_text_->text(); }

void MainWindow::set_dark(bool dark) { set_theme(dark); }

void MainWindow::update_title() {
  const ShownRun* shown = document_.current_run();
  setWindowTitle(shown == nullptr
                     ? QString("kvspan-viewer")
                     : QString("%1 - %2 - kvspan-viewer")
                           .arg(QString::fromStdString(shown->run().label),
                                QString::fromStdString(shown->result->path.filename().string())));
}

void MainWindow::show_palette() {
  std::vector<Command> commands;
  for (QAction* menu : menuBar()->actions()) {
    for (QAction* action : menu->menu()->actions()) {
      if (action->isSeparator() || action->menu() != nullptr) continue;
      commands.push_back({action->text().remove('&'), action->shortcut().toString(),
                          [action] { action->trigger(); }});
    }
  }
  for (const QString& path : QSettings().value("recent").toStringList()) {
    commands.push_back({"Open " + path, QString(), [this, path] { open({path}); }});
  }
  for (std::size_t i = 0; i < document_.runs().size(); ++i) {
    const QString label = QString::fromStdString(document_.runs()[i].run().label);
    const auto run = static_cast<int>(i);
    commands.push_back({"Run " + label, QString(), [this, run] { document_.set_current(run); }});
    commands.push_back(
        {"Baseline " + label, QString(), [this, run] { document_.set_baseline(run); }});
  }
  show_command_palette(this, commands, [this](qint64 number) {
    const RowIndex row =
        std::clamp<RowIndex>(number, 0, std::max<RowIndex>(0, document_.rows() - 1));
    document_.set_selection({row, row + 1});
    const Rows zoom = document_.zoom();
    if (row < zoom.begin || row >= zoom.end) {
      document_.set_zoom({row - zoom.size() / 2, row - zoom.size() / 2 + zoom.size()});
    }
  });
}

}  // namespace kvspan::gui
