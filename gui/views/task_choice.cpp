// SPDX-License-Identifier: Apache-2.0
#include "gui/views/task_choice.h"

#include <algorithm>

namespace kvspan::gui {

TaskChoice::TaskChoice(QWidget* parent) : QComboBox(parent) {
  setObjectName("task");
  setAccessibleName("task");
  setToolTip("Tasks of the evaluations that are open");
  setSizeAdjustPolicy(QComboBox::AdjustToContents);
}

void TaskChoice::follow(const Document& document) {
  const auto before = chosen();
  tasks_.clear();
  std::vector<EvaluationPtr> files;
  for (const ResultPtr& result : document.results()) {
    if (result->evaluation &&
        std::find(files.begin(), files.end(), result->evaluation) == files.end())
      files.push_back(result->evaluation);
  }
  clear();
  for (const EvaluationPtr& file : files) {
    const QString name = QString::fromStdString(file->path.filename().string());
    for (std::size_t t = 0; t < file->tasks.size(); ++t) {
      tasks_.emplace_back(file, t);
      const QString task = QString::fromStdString(file->tasks[t].name);
      addItem(files.size() > 1 ? name + ": " + task : task);
    }
  }
  const auto at = before ? std::find(tasks_.begin(), tasks_.end(), *before) : tasks_.end();
  if (at != tasks_.end()) setCurrentIndex(static_cast<int>(at - tasks_.begin()));
  setVisible(tasks_.size() > 1);
}

std::optional<std::pair<EvaluationPtr, std::size_t>> TaskChoice::chosen() const {
  const int index = currentIndex();
  if (index < 0 || static_cast<std::size_t>(index) >= tasks_.size()) return std::nullopt;
  return tasks_[static_cast<std::size_t>(index)];
}

}  // namespace kvspan::gui
