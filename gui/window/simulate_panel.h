// SPDX-License-Identifier: Apache-2.0
// The panel of runs from inside the viewer: a trace, policies with forms made from the registry,
// and sliders that run the current policy again while they move.
#pragma once

#include <QStringList>
#include <QWidget>

#include "gui/model/document.h"

namespace kvspan::gui {

class RunPage;
struct SimulationRequest;
class WhatIfPage;

class SimulatePanel : public QWidget {
  Q_OBJECT
 public:
  SimulatePanel(Document& document, QWidget* parent);

  void set_trace(const QString& path);
  // Offered below the line of the trace, the latest first; of a session.
  [[nodiscard]] QStringList recent_traces() const;
  void set_recent_traces(const QStringList& paths);
  [[nodiscard]] bool busy() const;

  // Runs this, whatever the page shows.
  void start(const SimulationRequest& request);

 public slots:
  void run();
  void cancel();

 signals:
  // The document has the result already, and had what was finished of it before.
  void finished(const kvspan::gui::ResultPtr& result);
  void failed(const QString& line);

 protected:
  void changeEvent(QEvent* event) override;

 private:
  void apply_theme();
  RunPage* run_page_ = nullptr;
  WhatIfPage* what_if_page_ = nullptr;
};

}  // namespace kvspan::gui
