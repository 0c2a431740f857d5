// SPDX-License-Identifier: Apache-2.0
#include "gui/model/sweep_state.h"

#include <utility>

namespace kvspan::gui {
namespace {

// Read again: what its cells differ in is called as before.
bool is_same(const Sweep& before, const Sweep& after) {
  if (before.path != after.path || before.cells() != after.cells()) return false;
  for (std::size_t p = 0; p < before.parameters.size(); ++p) {
    if (before.parameters[p].words != after.parameters[p].words) return false;
  }
  return true;
}

}  // namespace

SweepState::SweepState(QObject* parent) : QObject(parent), background_(this) {}

void SweepState::set(SweepPtr sweep) {
  background_.cancel();
  const bool same = sweep_ && sweep && is_same(*sweep_, *sweep);
  sweep_ = std::move(sweep);
  report_.reset();
  if (!same) {
    filter_ = {};
    axes_ = sweep_ ? default_axes(*sweep_) : MatrixAxes();
    group_ = 0;
    cell_ = -1;
  }
  const double threshold = std::exchange(threshold_, sweep::ReportOptions().least);
  taken_ = 0;
  if (sweep_) {
    report_ = {sweep_, &sweep_->report};
    for (std::size_t c = 0; c < sweep_->cells(); ++c) taken_ += filter_.takes(*sweep_, c) ? 1 : 0;
    set_threshold(threshold);
  }
  emit changed();
  emit cell_changed();
}

void SweepState::set_filter(const SweepFilter& filter) {
  if (filter == filter_ || !sweep_) return;
  filter_ = filter;
  taken_ = 0;
  for (std::size_t c = 0; c < sweep_->cells(); ++c) taken_ += filter_.takes(*sweep_, c) ? 1 : 0;
  emit changed();
}

void SweepState::set_axes(const MatrixAxes& axes) {
  if (axes == axes_) return;
  axes_ = axes;
  emit changed();
}

void SweepState::set_group(std::size_t group) {
  if (std::exchange(group_, group) != group) emit changed();
}

void SweepState::set_threshold(double threshold) {
  if (threshold == threshold_ || !sweep_) return;
  threshold_ = threshold;
  const auto make = [sweep = sweep_, threshold](const Background::Cancelled&) {
    sweep::ReportOptions options;
    options.least = threshold;
    return sweep::make_report(sweep->folder, options);
  };
  background_.run(
      make,
      [this](sweep::SweepReport made) {
        report_ = std::make_shared<const sweep::SweepReport>(std::move(made));
        emit changed();
      },
      [](const QString&) {});  // the same report was made when the folder was opened
}

void SweepState::set_cell(int cell) {
  if (std::exchange(cell_, cell) != cell) emit cell_changed();
}

void SweepState::open_run() {
  if (sweep_ && cell_ >= 0) emit run_wanted(cell_);
}

}  // namespace kvspan::gui
