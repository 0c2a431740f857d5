// SPDX-License-Identifier: Apache-2.0
// What the views of a sweep share: above, what filters its cells; below, the chosen cell, and ways
// to its run.
#pragma once

#include <QString>
#include <vector>

#include "gui/model/sweep_state.h"
#include "gui/views/view.h"

class QComboBox;
class QHBoxLayout;
class QLabel;
class QLineEdit;
class QPushButton;
class QTableView;

namespace kvspan::gui {

class SweepView : public View {
 public:
  [[nodiscard]] bool has_content() const override { return state().sweep() != nullptr; }
  [[nodiscard]] bool is_ready() const override { return !state().busy(); }
  void draw(QPainter& painter, const QSize& size) override;

 protected:
  SweepView(Document& document, QWidget* parent);
  [[nodiscard]] SweepState& state() const { return document().sweep(); }
  // REQUIRES: called once, by the constructor.
  void set_content(QWidget* content);
  // Before what filters.
  void add_control(QWidget* control);
  // Says this in place of the chosen cell; empty: that again.
  void say(const QString& text);
  // Called while it is seen and a sweep is open, when anything of the state has changed.
  virtual void rebuild() = 0;
  virtual void cell_changed() {}

  void showEvent(QShowEvent* event) override;
  void changeEvent(QEvent* event) override;

 private:
  void build_bar();
  void build_strip();
  void follow();
  void follow_filter();
  void make_choices();
  void choose(std::size_t choice, int index);
  void show_cell();
  void copy_command();

  struct Choice {
    Sweep::Parameter parameter;
    QComboBox* box;
  };
  QWidget *bar_, *strip_;
  QHBoxLayout* bar_layout_;
  QWidget* content_ = nullptr;
  QLabel *empty_, *count_, *readout_;
  QLineEdit* words_;
  QPushButton *open_, *copy_;
  std::vector<Choice> choices_;
  SweepPtr chosen_of_;  // the sweep that choices_ are of
  QString said_;
  bool stale_ = true;
};

}  // namespace kvspan::gui
