// SPDX-License-Identifier: Apache-2.0
// The sweep that is open and how it is looked at: the state that its views share, as the document
// is that of runs.
#pragma once

#include <QObject>
#include <cstddef>
#include <string>

#include "gui/model/background.h"
#include "gui/model/sweep.h"
#include "gui/model/sweep_matrix.h"

namespace kvspan::gui {

class SweepState : public QObject {
  Q_OBJECT
 public:
  explicit SweepState(QObject* parent);

  // null: none is open. The same folder again keeps how it is looked at.
  void set(SweepPtr sweep);
  [[nodiscard]] const SweepPtr& sweep() const { return sweep_; }

  [[nodiscard]] const SweepFilter& filter() const { return filter_; }
  void set_filter(const SweepFilter& filter);
  [[nodiscard]] std::size_t taken() const { return taken_; }  // cells that it takes
  [[nodiscard]] const MatrixAxes& axes() const { return axes_; }
  void set_axes(const MatrixAxes& axes);
  // The setting whose curves are shown, in the report's groups; of one that the filter leaves out,
  // the first that it takes.
  [[nodiscard]] std::size_t group() const { return group_; }
  void set_group(std::size_t group);
  // What has to be left of attention, F.
  [[nodiscard]] double threshold() const { return threshold_; }
  void set_threshold(double threshold);
  // At the threshold, or, while busy(), at the one before. REQUIRES: a sweep is open.
  [[nodiscard]] const sweep::SweepReport& report() const { return *report_; }
  [[nodiscard]] bool busy() const { return background_.busy(); }

  // The chosen cell; -1: none.
  [[nodiscard]] int cell() const { return cell_; }
  void set_cell(int cell);
  // Asks for the run of the chosen cell.
  void open_run();

 signals:
  void changed();  // another sweep, report, filter, axes or group
  void cell_changed();
  void run_wanted(int cell);

 private:
  SweepPtr sweep_;
  std::shared_ptr<const sweep::SweepReport> report_;
  SweepFilter filter_;
  MatrixAxes axes_;
  std::size_t taken_ = 0, group_ = 0;
  double threshold_ = 0.9;
  int cell_ = -1;
  Background background_;
};

}  // namespace kvspan::gui
