// SPDX-License-Identifier: Apache-2.0
// A policy is chosen from the registry, set up in a form, or written as text; what is wrong with it
// is said while it is written.
#pragma once

#include <QString>
#include <QTimer>
#include <QWidget>
#include <functional>
#include <memory>

#include "gui/model/background.h"
#include "sim/replay/engine.h"
#include "sim/trace/trace.h"

class QComboBox;
class QLabel;
class QLineEdit;
class QModelIndex;
class QPushButton;
class QSortFilterProxyModel;
class QTableView;
class QTreeView;
class QVBoxLayout;

namespace kvspan::gui {

class PolicyForm;
class PolicyList;

class PolicyPicker final : public QWidget {
  Q_OBJECT
 public:
  // What a policy is judged against.
  struct Setting {
    std::shared_ptr<const Trace> trace;  // null: none yet
    EngineOptions options;
  };
  PolicyPicker(std::function<Setting()> setting, QWidget* parent);
  ~PolicyPicker() override;

  // What is written, if nothing is wrong with it; else empty.
  [[nodiscard]] QString spec() const;
  // Says what is wrong with what is written; soon: when typing rests.
  void judge();
  void judge_soon() { pause_->start(); }
  void apply_theme();

 signals:
  void added();  // spec() is to be run

 private:
  void build_list(QVBoxLayout* box);
  void build_form(QVBoxLayout* box);
  void build_spec(QVBoxLayout* box);
  void connect_all();
  void search_changed(const QString& text);
  void show_policy(const QModelIndex& index);
  void spec_edited();
  void show_judgement(const QString& text, const QString& error);

  std::function<Setting()> setting_;
  QLineEdit* search_ = nullptr;
  PolicyList* policies_ = nullptr;
  QSortFilterProxyModel* found_ = nullptr;
  QTreeView* tree_ = nullptr;
  QComboBox* wrapper_ = nullptr;
  PolicyForm* form_ = nullptr;
  QTableView* form_table_ = nullptr;
  QLineEdit* spec_line_ = nullptr;
  QPushButton* add_ = nullptr;
  QLabel* message_ = nullptr;
  bool filling_ = false;  // the form follows the line, not the other way round
  bool bad_ = false;
  QTimer* pause_;
  Background judging_;
};

}  // namespace kvspan::gui
