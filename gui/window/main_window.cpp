// SPDX-License-Identifier: Apache-2.0
#include "gui/window/main_window.h"

#include <QApplication>
#include <QClipboard>
#include <QCloseEvent>
#include <QFileInfo>
#include <QHBoxLayout>
#include <QLabel>
#include <QSettings>
#include <QSplitter>
#include <QStatusBar>
#include <QTabWidget>
#include <QToolButton>
#include <QVBoxLayout>
#include <algorithm>
#include <utility>

#include "gui/model/numbers.h"
#include "gui/model/sweep_state.h"
#include "gui/paint/theme.h"
#include "gui/window/copying.h"
#include "gui/window/map_guard.h"
#include "gui/window/run_list.h"
#include "gui/window/simulate_panel.h"

namespace kvspan::gui {
namespace {

constexpr qsizetype kMostMessages = 5;

}  // namespace

MainWindow::MainWindow(const QString& session_file, QWidget* parent)
    : QMainWindow(parent), session_file_(session_file) {
  setObjectName("main_window");
  setAcceptDrops(true);
  build_widgets();
  build_actions();
  update_title();
  show_what_is_open();
  connect(&document_, &Document::runs_changed, this, &MainWindow::update_title);
  connect(&document_, &Document::current_changed, this, &MainWindow::update_title);
  connect(&document_, &Document::runs_changed, this, &MainWindow::show_what_is_open);
  connect(&document_.sweep(), &SweepState::changed, this, &MainWindow::show_what_is_open);
  connect(&document_.sweep(), &SweepState::run_wanted, this, &MainWindow::open_cell);
  player_.ready = [this] {
    return std::all_of(views_.begin(), views_.end(),
                       [](const View* view) { return !view->isVisible() || view->is_ready(); });
  };
  connect(&player_, &Player::changed, this, [this](bool playing) {
    if (playing) return statusBar()->showMessage("playing; Space or Ctrl+Space stops");
    statusBar()->clearMessage();
  });
  connect(&watcher_, &QFileSystemWatcher::fileChanged, this, &MainWindow::file_changed);
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

  side_->addTab(build_runs(), "Runs");
  build_simulate();
  views_ = make_views(document_, this);
  for (std::size_t i = 1; i < views_.size(); ++i) tabs_->addTab(views_[i], views_[i]->title());

  charts_->addWidget(build_upper());
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

// The list of runs, below what the second line of each says.
QWidget* MainWindow::build_runs() {
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
  return runs;
}

void MainWindow::build_simulate() {
  simulate_ = new SimulatePanel(document_, this);
  simulate_->set_recent_traces(QSettings().value("recent_traces").toStringList());
  side_->addTab(simulate_, "Simulate");
  connect(simulate_, &SimulatePanel::failed, this, [this](const QString& message) {
    running_cell_.reset();
    show_message(message);
  });
  connect(simulate_, &SimulatePanel::finished, this, [this](const ResultPtr& result) {
    QSettings().setValue("recent_traces", simulate_->recent_traces());
    if (!running_cell_) return;
    cell_runs_[*std::exchange(running_cell_, std::nullopt)] = result->path;
    show_result(result);
  });
}

// The chart of memory below the strip of messages.
QWidget* MainWindow::build_upper() {
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
  return upper;
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
    if (view != views_.front()) {
      tabs_->setTabVisible(tabs_->indexOf(view), true);
      tabs_->setCurrentWidget(view);
    }
    view->setFocus();
  }
}

// Views of sweeps and evaluations have tabs while one is open. Without runs there is no memory over
// time, and the views of a sweep get its place.
void MainWindow::show_what_is_open() {
  for (std::size_t i = kRunViews; i < views_.size(); ++i)
    tabs_->setTabVisible(tabs_->indexOf(views_[i]), views_[i]->has_content());
  const bool memory = !document_.runs().empty() || document_.sweep().sweep() == nullptr;
  if (memory != views_.front()->isHidden()) return;
  views_.front()->setVisible(memory);
  charts_->setSizes(memory ? QList<int>{430, 330} : QList<int>{1, 10'000});
}

// What no widget takes: Space plays.
void MainWindow::keyPressEvent(QKeyEvent* event) {
  if (event->key() == Qt::Key_Space && event->modifiers() == Qt::NoModifier)
    return player_.toggle();
  QMainWindow::keyPressEvent(event);
}

void MainWindow::copy() {
  const View* under = nullptr;
  for (const QWidget* w = QApplication::widgetAt(QCursor::pos()); w != nullptr && under == nullptr;
       w = w->parentWidget())
    under = dynamic_cast<const View*>(w);
  const QString text = copied_text(under, QApplication::focusWidget(), current_view());
  if (text.isEmpty()) return statusBar()->showMessage("nothing to copy here", 4000);
  QApplication::clipboard()->setText(text);
  statusBar()->showMessage(QString("copied %1 lines").arg(text.count('\n') + 1), 4000);
}

void MainWindow::closeEvent(QCloseEvent* event) {
  save_session();
  event->accept();
}

// ---- Appearance
// -----------------------------------------------------------------------------------

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

}  // namespace kvspan::gui
