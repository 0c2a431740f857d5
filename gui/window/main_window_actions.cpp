// SPDX-License-Identifier: Apache-2.0
// The menus of the window, and all of their commands by a few letters.
#include <QAction>
#include <QMenu>
#include <QMenuBar>
#include <QMessageBox>
#include <QSettings>
#include <algorithm>

#include "gui/model/run_table.h"
#include "gui/paint/theme.h"
#include "gui/window/about.h"
#include "gui/window/command_palette.h"
#include "gui/window/main_window.h"
#include "gui/window/run_list.h"
#include "gui/window/simulate_panel.h"

namespace kvspan::gui {
namespace {

constexpr int kColourSlots = 32;  // colours times dashes of the palette

}  // namespace

QAction* MainWindow::add_action(QMenu* menu, const QString& text, const QKeySequence& key,
                                const std::function<void()>& run) {
  QAction* action = menu->addAction(text);
  action->setShortcut(key);
  connect(action, &QAction::triggered, this, run);
  return action;
}

void MainWindow::build_actions() {
  build_file_menu();
  build_run_menu();
  build_go_menu();
  build_view_menu();
  build_help_menu();
}

void MainWindow::build_file_menu() {
  QMenu* file = menuBar()->addMenu("&File");
  add_action(file, "&Open...", QKeySequence::Open, [this] { choose_files(); });
  recent_menu_ = file->addMenu("Open &recent");
  connect(recent_menu_, &QMenu::aboutToShow, this, &MainWindow::show_recent);
  add_action(file, "Open s&weep...", Qt::CTRL | Qt::SHIFT | Qt::Key_O, [this] { choose_sweep(); });
  add_action(file, "&Read again", Qt::Key_F5, [this] { reload(); });
  add_action(file, "&Close result", QKeySequence::Close, [this] {
    if (const ShownRun* shown = document_.current_run()) document_.close(ResultPtr(shown->result));
  });
  file->addSeparator();
  add_action(file, "&Save result as...", Qt::CTRL | Qt::SHIFT | Qt::Key_S,
             [this] { save_result(); });
  add_action(file, "&Export view...", Qt::CTRL | Qt::Key_E, [this] { export_current_view(); });
  add_action(file, "&Copy what is under the mouse, or chosen", QKeySequence::Copy,
             [this] { copy(); });
  file->addSeparator();
  add_action(file, "&Quit", QKeySequence::Quit, [this] { close(); });
}

void MainWindow::build_run_menu() {
  QMenu* simulate = menuBar()->addMenu("&Run");
  add_action(simulate, "Choose &policies to simulate", Qt::CTRL | Qt::Key_R, [this] {
    side_->setCurrentWidget(simulate_);
    simulate_->setFocus();
  });
  add_action(simulate, "&Start the simulation", Qt::CTRL | Qt::SHIFT | Qt::Key_R,
             [this] { simulate_->run(); });
  add_action(simulate, "&Cancel the simulation", Qt::CTRL | Qt::Key_Period,
             [this] { simulate_->cancel(); });
}

void MainWindow::build_go_menu() {
  QMenu* go = menuBar()->addMenu("&Go");
  add_action(go, "&Memory over time", Qt::CTRL | Qt::Key_0,
             [this] { show_view(views_.front()->name()); });
  for (std::size_t i = 1; i < views_.size(); ++i) {
    const QKeySequence key = i < 10 ? QKeySequence(QString("Ctrl+%1").arg(i)) : QKeySequence();
    add_action(go, views_[i]->title(), key, [this, i] { show_view(views_[i]->name()); });
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
  add_action(go, "P&lay rows from the selected one, or stop", Qt::CTRL | Qt::Key_Space,
             [this] { player_.toggle(); });
  add_action(go, "Next run", Qt::CTRL | Qt::Key_Down,
             [this] { document_.set_current(document_.current() + 1); });
  add_action(go, "Previous run", Qt::CTRL | Qt::Key_Up,
             [this] { document_.set_current(document_.current() - 1); });
}

void MainWindow::build_view_menu() {
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
  add_run_actions(view);
  view->addSeparator();
  add_action(view, "&Dark colours", Qt::CTRL | Qt::Key_D, [this] { set_dark(!theme().dark); });
}

// What is done to the runs that are shown.
void MainWindow::add_run_actions(QMenu* view) {
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
}

void MainWindow::build_help_menu() {
  QMenu* help = menuBar()->addMenu("&Help");
  add_action(help, "&Keys and what views show", QKeySequence::HelpContents, [this] {
    QString text;
    for (const View* v : views_) text += QString("<p><b>%1.</b> %2</p>").arg(v->title(), v->help());
    text += "<p>Ctrl+K lists every command with its key. Files can be dropped on the window.</p>";
    auto* box = new QMessageBox(QMessageBox::NoIcon, "kvspan-viewer", text, QMessageBox::Ok, this);
    box->setAttribute(Qt::WA_DeleteOnClose);
    box->open();
  });
  add_action(help, "&About kvspan-viewer", {}, [this] {
    auto* box = new QMessageBox(QMessageBox::NoIcon, "About kvspan-viewer", about_text(),
                                QMessageBox::Ok, this);
    box->setObjectName("about");
    box->setAttribute(Qt::WA_DeleteOnClose);
    box->open();
  });
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
