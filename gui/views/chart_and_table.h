// SPDX-License-Identifier: Apache-2.0
// A chart of curves beside the table of its lines; in a picture the table is below.
#pragma once

#include <QTableView>
#include <QWidget>
#include <functional>

#include "gui/model/plain_table.h"
#include "gui/paint/curve_plot.h"

class QBoxLayout;

namespace kvspan::gui {

class ChartAndTable final : public QWidget {
 public:
  ChartAndTable(PlainTable* model, QWidget* parent);

  std::function<void(int item)> row_chosen;  // by click or Enter

  [[nodiscard]] CurvePlot& plot() const { return *plot_; }
  // After the model has changed.
  void fit_table();
  void set_paper(bool paper);
  [[nodiscard]] QSize picture_size() const;

 private:
  [[nodiscard]] int paper_height() const;  // of the table
  CurvePlot* plot_;
  QTableView* table_;
  QBoxLayout* row_;
};

}  // namespace kvspan::gui
