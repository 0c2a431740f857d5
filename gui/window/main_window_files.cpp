// SPDX-License-Identifier: Apache-2.0
// What the window opens, saves and exports, and the session.
#include <QDir>
#include <QDragEnterEvent>
#include <QFileDialog>
#include <QFileInfo>
#include <QMenu>
#include <QMimeData>
#include <QSettings>
#include <QSplitter>
#include <QStatusBar>
#include <QTabWidget>
#include <algorithm>
#include <fstream>
#include <utility>

#include <nlohmann/json.hpp>

#include "gui/model/session.h"
#include "gui/model/several.h"
#include "gui/model/simulation.h"
#include "gui/model/sweep_state.h"
#include "gui/paint/theme.h"
#include "gui/window/main_window.h"
#include "gui/window/settings.h"
#include "gui/window/simulate_panel.h"
#include "sim/base/error.h"
#include "sim/trace/safetensors.h"

namespace kvspan::gui {
namespace {

constexpr int kMostRecent = 12;

// A result's file and those that it names.
QStringList files_of(const Result& result) {
  const auto part = part_of(result.path);
  QStringList files{QString::fromStdString((part ? part->first : result.path).string())};
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
  struct Opened {
    std::vector<ResultPtr> results;  // null: a trace
    SweepPtr sweep;
  };
  const QString path = to_open_.takeFirst();
  statusBar()->showMessage(QString("reading %1 ...").arg(path));
  opener_.run(
      [file = path.toStdString()](const Background::Cancelled&) -> Opened {
        if (const auto folder = sweep_folder_of(file)) return {{}, open_sweep_folder(*folder)};
        const bool is_trace = !part_of(file) && kind_of(file) == FileKind::trace;
        return {is_trace ? std::vector<ResultPtr>{nullptr} : open_results(file), nullptr};
      },
      [this, path](const Opened& opened_now) {
        statusBar()->clearMessage();
        if (opened_now.sweep) accept(path, opened_now.sweep);
        for (const ResultPtr& result : opened_now.results) accept(path, result);
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

void MainWindow::accept(const QString& path, SweepPtr sweep) {
  remember(path);
  const bool first = document_.sweep().sweep() == nullptr;
  document_.sweep().set(std::move(sweep));
  if (first) show_view("curves");
}

void MainWindow::open_cell(int cell) {
  const SweepPtr& sweep = document_.sweep().sweep();
  const auto index = static_cast<std::size_t>(cell);
  const std::uint64_t id = sweep->folder.grid.cells[index].id;
  for (const ResultPtr& result : document_.results()) {
    if (cell_runs_.contains(id) && result->path == cell_runs_[id]) return show_result(result);
  }
  const SimulationRequest request = request_of(*sweep, index);
  if (!QFileInfo::exists(QString::fromStdString(request.trace))) {
    return show_message(QString("The trace of this cell is not there any more; where it is: %1")
                            .arg(shell_text(request.command())));
  }
  running_cell_ = id;
  side_->setCurrentWidget(simulate_);
  simulate_->start(request);
}

// Its first run is the one that all views show.
void MainWindow::show_result(const ResultPtr& result) {
  const auto& runs = document_.runs();
  const auto at = std::find_if(runs.begin(), runs.end(), [&](const ShownRun& shown) {
    return shown.result->path == result->path;
  });
  if (at == runs.end()) return;
  document_.set_current(static_cast<int>(at - runs.begin()));
  const SweepPtr& sweep = document_.sweep().sweep();
  if (sweep == nullptr) return;
  const auto& traces = sweep->folder.plan.traces;
  const bool known = std::any_of(traces.begin(), traces.end(), [&](const auto& trace) {
    return trace.sha256 == result->trace.sha256;
  });
  if (!known) show_message("The trace has changed since the sweep: the run is not its cell's.");
}

void MainWindow::file_changed(const QString& path) {
  const auto results = document_.results();
  const auto shows = [&](const ResultPtr& result) { return files_of(*result).contains(path); };
  const bool gone_json = std::any_of(results.begin(), results.end(), [&](const ResultPtr& result) {
    return QString::fromStdString(result->path.string()) == path;
  });
  if (!gone_json && std::none_of(results.begin(), results.end(), shows)) return;
  const bool there = QFileInfo::exists(path);
  show_message(there ? QString("%1 has changed on disk; F5 reads it again").arg(path)
                     : QString("%1 is gone from disk; what was read of it stays").arg(path));
}

void MainWindow::choose_files() {
  auto* dialog = new QFileDialog(this, "Open results or traces", QString(), file_filter());
  dialog->setAttribute(Qt::WA_DeleteOnClose);
  dialog->setFileMode(QFileDialog::ExistingFiles);
  connect(dialog, &QFileDialog::filesSelected, this,
          [this](const QStringList& paths) { open(paths); });
  dialog->open();
}

void MainWindow::choose_sweep() {
  auto* dialog = new QFileDialog(this, "Open the folder of a sweep");
  dialog->setAttribute(Qt::WA_DeleteOnClose);
  dialog->setFileMode(QFileDialog::Directory);
  connect(dialog, &QFileDialog::filesSelected, this,
          [this](const QStringList& paths) { open(paths); });
  dialog->open();
}

void MainWindow::reload() {
  QStringList paths;
  if (const SweepPtr& sweep = document_.sweep().sweep())
    paths << QString::fromStdString(sweep->path.string());
  for (const ResultPtr& result : document_.results()) {
    paths << QString::fromStdString(file_of(*result));
  }
  paths.removeDuplicates();
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
      export_view(*view, path, view->picture_size(), 2);
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

// ---- Session
// ---------------------------------------------------------------------------------------

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

}  // namespace kvspan::gui
