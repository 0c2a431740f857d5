// SPDX-License-Identifier: Apache-2.0
// How policies are run: budgets, passes, what is measured, how bytes are counted.
#pragma once

#include <QWidget>
#include <string>
#include <vector>

#include "gui/model/simulation.h"

class QComboBox;
class QGridLayout;
class QLabel;
class QLineEdit;
class QSpinBox;

namespace kvspan::gui {

class RunOptions final : public QWidget {
  Q_OBJECT
 public:
  explicit RunOptions(QWidget* parent);

  // All of a request but its trace and its policies.
  [[nodiscard]] SimulationRequest request() const;
  // A chunk or a prompt has at most so many rows.
  void set_rows(int rows);
  // Says whom the field of budgets does not change.
  void note_budgets(const std::vector<std::string>& specs);
  void apply_theme();

 signals:
  void budgets_changed();
  void passes_changed();

 private:
  QSpinBox* number(const QString& name, const QString& help, const QString& none, int least,
                   int most, int value);
  void build_budgets(QGridLayout* grid);
  void build_choices();

  QLineEdit* budgets_ = nullptr;
  QLabel* note_ = nullptr;
  QSpinBox *chunk_ = nullptr, *prompt_ = nullptr, *kv_bytes_ = nullptr, *seed_ = nullptr;
  QComboBox *rows_ = nullptr, *layout_ = nullptr, *prefill_ = nullptr;
};

}  // namespace kvspan::gui
