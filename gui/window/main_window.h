// SPDX-License-Identifier: Apache-2.0
// The window: it only wires. Files come in, views show the document, actions change it.
#pragma once

#include <QFileSystemWatcher>
#include <QMainWindow>
#include <QTimer>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "gui/model/background.h"
#include "gui/model/document.h"
#include "gui/model/player.h"
#include "gui/views/view.h"

class QLabel;
class QMenu;
class QSplitter;
class QTabWidget;

namespace kvspan::gui {

class RunList;
struct Sweep;
using SweepPtr = std::shared_ptr<const Sweep>;
class SimulatePanel;

class MainWindow : public QMainWindow {
  Q_OBJECT
 public:
  // session_file: where the state is kept from start to start; empty: nowhere.
  explicit MainWindow(const QString& session_file, QWidget* parent = nullptr);
  ~MainWindow() override;

  [[nodiscard]] Document& document() { return document_; }
  [[nodiscard]] const std::vector<View*>& views() const { return views_; }
  void show_view(const QString& name);

  // Opens results, traces and sweeps one after the other in the background; `opened` or `failed`
  // follows for each. A trace becomes that of the next simulation.
  //   afterwards  called once all of them were read or refused
  void open(const QStringList& paths, const std::function<void()>& afterwards = {});
  // What the last session had open, and how; false if there is none.
  bool restore_session();
  void save_session();
  // A line in the strip above the charts, below those that were not closed yet.
  void show_message(const QString& text);
  [[nodiscard]] QString message() const;

 signals:
  void opened(const QString& path);
  void failed(const QString& message);

 protected:
  void closeEvent(QCloseEvent* event) override;
  void dragEnterEvent(QDragEnterEvent* event) override;
  void dropEvent(QDropEvent* event) override;
  void keyPressEvent(QKeyEvent* event) override;

 private:
  void build_widgets();
  [[nodiscard]] QWidget* build_runs();
  void build_simulate();
  [[nodiscard]] QWidget* build_upper();
  void build_actions();
  void build_file_menu();
  void build_run_menu();
  void build_go_menu();
  void build_view_menu();
  void add_run_actions(QMenu* view);
  void build_help_menu();
  QAction* add_action(QMenu* menu, const QString& text, const QKeySequence& key,
                      const std::function<void()>& run);
  void open_next();
  void accept(const QString& path, ResultPtr result);
  void accept(const QString& path, SweepPtr sweep);
  void show_what_is_open();
  void choose_sweep();
  // The run of a cell: what is open of it, else a simulation.
  void open_cell(int cell);
  void show_result(const ResultPtr& result);
  void copy();
  void file_changed(const QString& path);
  void choose_files();
  void export_current_view();
  void save_result();
  void reload();
  void show_palette();
  void show_recent();
  void remember(const QString& path);
  void update_title();
  void set_dark(bool dark);
  [[nodiscard]] View* current_view() const;

  Document document_;
  Player player_{document_, nullptr};
  QString session_file_;
  std::vector<View*> views_;
  QSplitter* columns_ = nullptr;
  QSplitter* charts_ = nullptr;
  QTabWidget* side_ = nullptr;
  QTabWidget* tabs_ = nullptr;
  RunList* run_list_ = nullptr;
  SimulatePanel* simulate_ = nullptr;
  QWidget* strip_ = nullptr;
  QLabel* strip_text_ = nullptr;
  QLabel* hint_ = nullptr;
  QMenu* recent_menu_ = nullptr;
  QFileSystemWatcher watcher_;
  QTimer autosave_;
  QStringList to_open_;
  std::vector<std::function<void()>> after_opening_;
  std::string saved_session_;
  // Of cells of the sweep, by id: the results of their runs; the one that runs now.
  std::map<std::uint64_t, std::filesystem::path> cell_runs_;
  std::optional<std::uint64_t> running_cell_;
  Background opener_{this};
};

}  // namespace kvspan::gui
