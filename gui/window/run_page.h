// SPDX-License-Identifier: Apache-2.0
// Policies on a trace: chosen, listed, run.
#pragma once

#include <QString>
#include <QStringList>
#include <QWidget>
#include <filesystem>
#include <memory>
#include <set>

#include "gui/model/background.h"
#include "gui/model/document.h"
#include "gui/model/simulation.h"

class QComboBox;
class QLabel;
class QListWidget;
class QProgressBar;
class QPushButton;
class QToolButton;
class QVBoxLayout;

namespace kvspan::gui {

class PolicyPicker;
class RunOptions;

class RunPage final : public QWidget {
  Q_OBJECT
 public:
  RunPage(Document& document, QWidget* parent);
  ~RunPage() override;

  void set_trace(const QString& path);
  // Offered below the line of the trace, the latest first.
  [[nodiscard]] QStringList recent_traces() const;
  void set_recent_traces(const QStringList& paths);
  [[nodiscard]] SimulationRequest request() const;
  [[nodiscard]] bool busy() const { return simulation_.busy(); }
  void run();
  void start(const SimulationRequest& request);
  void cancel() { simulation_.cancel(); }
  void apply_theme();

 signals:
  void finished(const kvspan::gui::ResultPtr& result);
  void failed(const QString& line);

 private:
  void build_trace(QVBoxLayout* box);
  void build_list(QVBoxLayout* box);
  void build_buttons(QVBoxLayout* box);
  void connect_widgets();
  void connect_simulation();
  void browse();
  void open_trace();
  void accept_trace(const QString& path, const std::shared_ptr<const Trace>& opened);
  void say_of_trace(const QString& text, bool bad);
  void follow_current();
  void add_to_list();
  void say(const QString& text, bool bad);
  void show_busy();
  void remove_closed();

  Document& document_;
  QComboBox* trace_line_ = nullptr;
  QToolButton* browse_ = nullptr;
  QLabel* trace_facts_ = nullptr;
  PolicyPicker* picker_ = nullptr;
  QListWidget* list_ = nullptr;
  RunOptions* options_ = nullptr;
  QPushButton *start_ = nullptr, *stop_ = nullptr;
  QProgressBar* progress_ = nullptr;
  QLabel* message_ = nullptr;
  bool bad_message_ = false, bad_trace_ = false;

  int runs_ = 0;
  std::set<std::filesystem::path> on_disk_;  // results whose files are there
  std::shared_ptr<const Trace> trace_;       // of trace_line_; null: none, or malformed
  Simulation simulation_;
  Background opening_;
};

}  // namespace kvspan::gui
