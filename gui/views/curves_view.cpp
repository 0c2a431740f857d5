// SPDX-License-Identifier: Apache-2.0
// Footprint against retained attention by method, and how small each can make the cache.
#include <QBoxLayout>
#include <QComboBox>
#include <QDoubleSpinBox>
#include <QHeaderView>
#include <QTableView>
#include <algorithm>

#include "gui/model/sweep_curves.h"
#include "gui/paint/curve_plot.h"
#include "gui/paint/mark_delegate.h"
#include "gui/views/chart_and_table.h"
#include "gui/views/sweep_view.h"

namespace kvspan::gui {
namespace {

class CurvesView final : public SweepView {
 public:
  CurvesView(Document& document, QWidget* parent) : SweepView(document, parent) {
    group_ = new QComboBox(this);
    group_->setObjectName("setting");
    group_->setAccessibleName("setting");
    group_->setToolTip("Curves of one setting at a time");
    add_control(group_);
    threshold_ = new QDoubleSpinBox(this);
    threshold_->setRange(0.1, 100);
    threshold_->setDecimals(1);
    threshold_->setPrefix("F = ");
    threshold_->setSuffix(" %");
    threshold_->setKeyboardTracking(false);
    threshold_->setAccessibleName("threshold");
    threshold_->setObjectName("sweep_threshold");
    threshold_->setToolTip("What has to be left of attention");
    add_control(threshold_);
    parts_ = new ChartAndTable(&table_model_, this);
    set_content(parts_);
    connect(group_, &QComboBox::activated, this, [this](int index) {
      state().set_group(static_cast<std::size_t>(group_->itemData(index).toULongLong()));
    });
    connect(threshold_, &QDoubleSpinBox::valueChanged, this,
            [this](double percent) { state().set_threshold(percent / 100); });
    parts_->plot().cursor_moved = [this] { say(parts_->plot().readout()); };
    parts_->plot().chosen = [this](int cell) { state().set_cell(cell); };
    parts_->row_chosen = [this](int method) {
      const auto& lines = curves_.chart.lines;
      const QString& wanted = curves_.methods[static_cast<std::size_t>(method)].line.name;
      const auto at = std::find_if(lines.begin(), lines.end(),
                                   [&](const CurveChart::Line& l) { return l.name == wanted; });
      parts_->plot().set_line(at == lines.end() ? -1 : static_cast<int>(at - lines.begin()));
    };
  }

  [[nodiscard]] QString name() const override { return "curves"; }
  [[nodiscard]] QString title() const override { return "Curves"; }
  [[nodiscard]] QString help() const override {
    return "Footprint against retained attention of every method, means over the traces with a "
           "band "
           "from the least to the most; grey steps are the Pareto front, dotted lines drop from "
           "where a method reaches F. The table has critical footprints; a click on a line of it "
           "shows a curve, one on a point chooses its cell, where it is of one trace. Arrows move, "
           "Enter chooses.";
  }
  [[nodiscard]] std::string csv() const override {
    if (!has_content() || state().report().groups.empty()) return "\n";
    return curves_csv(curves_, state().report(), shown_);
  }
  [[nodiscard]] QSize picture_size() const override {
    return has_content() ? parts_->picture_size().grownBy(layout()->contentsMargins()) : kNoteSize;
  }
  void draw(QPainter& painter, const QSize& size) override {
    parts_->set_paper(true);
    SweepView::draw(painter, size);
    parts_->set_paper(false);
  }

 protected:
  void rebuild() override {
    const Sweep& sweep = *state().sweep();
    const sweep::SweepReport& report = state().report();
    const std::vector<std::size_t> groups = groups_of(sweep, report, state().filter());
    const bool there = std::find(groups.begin(), groups.end(), state().group()) != groups.end();
    shown_ = there ? state().group() : groups.empty() ? 0 : groups.front();
    group_->clear();
    for (const std::size_t group : groups)
      group_->addItem(QString::fromStdString(text_of(report.groups[group])),
                      static_cast<qulonglong>(group));
    group_->setCurrentIndex(group_->findData(static_cast<qulonglong>(shown_)));
    group_->setVisible(groups.size() > 1);
    const QSignalBlocker quiet(threshold_);
    threshold_->setValue(100 * state().threshold());
    curves_ =
        groups.empty() ? SweepCurves() : make_sweep_curves(sweep, report, state().filter(), shown_);
    if (groups.empty()) curves_.chart.caption = "No cell that the boxes let pass was measured.";
    const QString scope = scope_text(state().filter(), sweep);
    if (!scope.isEmpty()) curves_.chart.caption += "; " + scope;
    parts_->plot().set(curves_.chart);
    set_criticals(curves_, sweep, table_model_);
    parts_->fit_table();
    cell_changed();
    say({});
  }
  void cell_changed() override { parts_->plot().set_item(state().cell()); }

 private:
  QComboBox* group_;
  QDoubleSpinBox* threshold_;
  PlainTable table_model_;
  ChartAndTable* parts_;
  SweepCurves curves_;
  std::size_t shown_ = 0;  // group of the report
};

}  // namespace

View* make_curves_view(Document& document, QWidget* parent) {
  return new CurvesView(document, parent);
}

}  // namespace kvspan::gui
