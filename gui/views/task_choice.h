// SPDX-License-Identifier: Apache-2.0
// The tasks of all open evaluations, to choose one from.
#pragma once

#include <QComboBox>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "gui/model/document.h"
#include "gui/model/evaluation.h"

namespace kvspan::gui {

class TaskChoice final : public QComboBox {
 public:
  explicit TaskChoice(QWidget* parent);
  // Those of the document; the chosen one stays if it is still there.
  void follow(const Document& document);
  // The file and the index of a task; nullopt: there is none.
  [[nodiscard]] std::optional<std::pair<EvaluationPtr, std::size_t>> chosen() const;

 private:
  std::vector<std::pair<EvaluationPtr, std::size_t>> tasks_;
};

}  // namespace kvspan::gui
