// SPDX-License-Identifier: Apache-2.0
#include "gui/window/simulate_panel.h"

#include <QEvent>
#include <QScrollArea>
#include <QShortcut>
#include <QTabWidget>
#include <QVBoxLayout>

#include "gui/window/pieces.h"
#include "gui/window/run_page.h"
#include "gui/window/what_if_page.h"

namespace kvspan::gui {

SimulatePanel::SimulatePanel(Document& document, QWidget* parent) : QWidget(parent) {
  auto* box = new QVBoxLayout(this);
  box->setContentsMargins(0, 0, 0, 0);
  auto* pages = new QTabWidget(this);
  pages->setDocumentMode(true);
  box->addWidget(pages);
  run_page_ = new RunPage(document, pages);
  what_if_page_ = new WhatIfPage(
      document, [this] { return run_page_->request(); }, pages);
  pages->addTab(scrolled(run_page_, pages), "Run policies");
  const int what_if = pages->addTab(scrolled(what_if_page_, pages), "What if");
  setFocusProxy(run_page_);
  connect(pages, &QTabWidget::currentChanged, this,
          [this, what_if](int shown) { what_if_page_->set_in_front(shown == what_if); });
  connect(run_page_, &RunPage::finished, this, &SimulatePanel::finished);
  connect(run_page_, &RunPage::failed, this, &SimulatePanel::failed);
  connect(what_if_page_, &WhatIfPage::failed, this, &SimulatePanel::failed);
  const auto on_key = [this](const QKeySequence& key, void (SimulatePanel::*act)()) {
    auto* shortcut = new QShortcut(key, this);
    shortcut->setContext(Qt::WidgetWithChildrenShortcut);
    connect(shortcut, &QShortcut::activated, this, act);
  };
  on_key(Qt::CTRL | Qt::Key_Return, &SimulatePanel::run);
  on_key(Qt::CTRL | Qt::Key_Enter, &SimulatePanel::run);
  on_key(Qt::Key_Escape, &SimulatePanel::cancel);
  apply_theme();
}

void SimulatePanel::set_trace(const QString& path) { run_page_->set_trace(path); }
QStringList SimulatePanel::recent_traces() const { return run_page_->recent_traces(); }
void SimulatePanel::set_recent_traces(const QStringList& paths) {
  run_page_->set_recent_traces(paths);
}
bool SimulatePanel::busy() const { return run_page_->busy() || what_if_page_->busy(); }
void SimulatePanel::run() { run_page_->run(); }
void SimulatePanel::start(const SimulationRequest& request) { run_page_->start(request); }
void SimulatePanel::cancel() { run_page_->cancel(); }

void SimulatePanel::apply_theme() {
  run_page_->apply_theme();
  what_if_page_->apply_theme();
}

void SimulatePanel::changeEvent(QEvent* event) {
  if (event->type() == QEvent::PaletteChange) apply_theme();
  QWidget::changeEvent(event);
}

}  // namespace kvspan::gui
