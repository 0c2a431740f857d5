// SPDX-License-Identifier: Apache-2.0
// Two parameters of a sweep against each other, coloured by a figure.
#include <QComboBox>
#include <QLayout>
#include <QScrollArea>
#include <utility>

#include "gui/model/numbers.h"
#include "gui/model/sweep_matrix.h"
#include "gui/paint/grid_map.h"
#include "gui/views/sweep_view.h"

namespace kvspan::gui {
namespace {

class MatrixView final : public SweepView {
 public:
  MatrixView(Document& document, QWidget* parent) : SweepView(document, parent) {
    rows_ = add_box("rows", "What rows are");
    columns_ = add_box("columns", "What columns are");
    figure_ = add_box("figure", "What cells are coloured by");
    for (QComboBox* box : {rows_, columns_, figure_})
      connect(box, &QComboBox::activated, this, [this] { choose_axes(); });
    auto* area = new QScrollArea(this);
    area->setFrameShape(QFrame::NoFrame);
    area->setWidgetResizable(true);
    map_ = new GridMap(area);
    area->setWidget(map_);
    area->setFocusProxy(map_);
    map_->cursor_moved = [this] { say_cell(); };
    map_->chosen = [this] {
      const SweepMatrix::Cell* cell = under_cursor();
      if (cell != nullptr && cell->count == 1 && cell->first >= 0) state().set_cell(cell->first);
    };
    set_content(area);
  }

  [[nodiscard]] QString name() const override { return "matrix"; }
  [[nodiscard]] QString title() const override { return "Matrix"; }
  [[nodiscard]] QString help() const override {
    return "Two parameters of the sweep against each other, coloured by a figure: its mean over "
           "all "
           "cells that differ besides and that the boxes above let pass. A click chooses the cell "
           "where there is one only.";
  }
  [[nodiscard]] std::string csv() const override {
    return has_content() ? matrix_csv(*state().sweep(), matrix_, state().axes()) : "\n";
  }
  [[nodiscard]] QSize picture_size() const override {
    return has_content() ? map_->picture_size().grownBy(layout()->contentsMargins()) : kNoteSize;
  }

 protected:
  void rebuild() override {
    const Sweep& sweep = *state().sweep();
    const MatrixAxes& axes = state().axes();
    fill_boxes(sweep, axes);
    matrix_ = make_matrix(sweep, state().report(), state().filter(), axes);
    GridContent content;
    const auto names = [&](Sweep::Parameter parameter, const std::vector<std::int32_t>& values) {
      std::vector<QString> out;
      for (const std::int32_t value : values)
        out.push_back(sweep.parameters[parameter].texts[static_cast<std::size_t>(value)]);
      return out;
    };
    content.rows = names(axes.rows, matrix_.rows);
    content.columns = names(axes.columns, matrix_.columns);
    content.row_title = title_of(axes.rows);
    content.column_title = title_of(axes.columns);
    int most = 0;
    for (const SweepMatrix::Cell& cell : matrix_.cells) {
      content.values.push_back(cell.value);
      // The unit stands in the caption.
      content.texts.push_back(value_text(matrix_, cell).remove(" %"));
      most = std::max(most, cell.count);
    }
    content.caption = caption(most);
    content.label = [unit = matrix_.unit](double value) { return figure_text(unit, value); };
    map_->set(std::move(content));
    say({});
  }

 private:
  QComboBox* add_box(const char* name, const char* help) {
    auto* box = new QComboBox(this);
    box->setObjectName(name);
    box->setAccessibleName(name);
    box->setToolTip(help);
    add_control(box);
    return box;
  }

  void fill_boxes(const Sweep& sweep, const MatrixAxes& axes) {
    for (const auto& [box, chosen] : {std::pair(rows_, axes.rows), {columns_, axes.columns}}) {
      box->clear();
      for (int p = 0; p < Sweep::parameter_count; ++p) {
        const auto parameter = static_cast<Sweep::Parameter>(p);
        if (sweep.varies(parameter) || parameter == chosen) box->addItem(title_of(parameter), p);
      }
      box->setCurrentIndex(box->findData(static_cast<int>(chosen)));
    }
    figure_->clear();
    for (const Sweep::Figure& figure : sweep.figures)
      figure_->addItem(figure.title, QString::fromStdString(figure.key));
    figure_->addItem("critical footprint", QString(kCriticalKey));
    figure_->setCurrentIndex(figure_->findData(QString::fromStdString(axes.figure)));
  }

  void choose_axes() {
    MatrixAxes axes;
    axes.rows = static_cast<Sweep::Parameter>(rows_->currentData().toInt());
    axes.columns = static_cast<Sweep::Parameter>(columns_->currentData().toInt());
    axes.figure = figure_->currentData().toString().toStdString();
    // The one that was chosen last stays, the other one makes room.
    if (axes.rows == axes.columns) {
      const MatrixAxes before = state().axes();
      (axes.rows == before.rows ? axes.rows : axes.columns) =
          axes.rows == before.rows ? before.columns : before.rows;
    }
    state().set_axes(axes);
  }

  [[nodiscard]] QString caption(int most) const {
    QString text = matrix_.title;
    if (matrix_.unit == Sweep::Unit::share) text += ", in %";
    if (most > 1) text += QString("; means of up to %1").arg(most);
    const QString scope = scope_text(state().filter(), *state().sweep());
    return scope.isEmpty() ? text : text + "; " + scope;
  }

  [[nodiscard]] const SweepMatrix::Cell* under_cursor() const {
    const auto [row, column] = map_->cursor();
    if (row < 0) return nullptr;
    return &matrix_.at(static_cast<std::size_t>(row), static_cast<std::size_t>(column));
  }

  void say_cell() {
    const SweepMatrix::Cell* cell = under_cursor();
    if (cell == nullptr) return say({});
    const auto [row, column] = map_->cursor();
    const Sweep& sweep = *state().sweep();
    const auto text = [&](Sweep::Parameter parameter, std::int32_t value) {
      return title_of(parameter) + " " +
             sweep.parameters[parameter].texts[static_cast<std::size_t>(value)];
    };
    QString said =
        QString("%1, %2: %3 %4")
            .arg(text(state().axes().rows, matrix_.rows[static_cast<std::size_t>(row)]),
                 text(state().axes().columns, matrix_.columns[static_cast<std::size_t>(column)]),
                 matrix_.title, value_text(matrix_, *cell));
    if (cell->count > 1) {
      said += QString(" (mean of %1, %2 to %3)")
                  .arg(cell->count)
                  .arg(figure_text(matrix_.unit, cell->low), figure_text(matrix_.unit, cell->high));
    }
    say(said);
  }

  QComboBox *rows_, *columns_, *figure_;
  GridMap* map_;
  SweepMatrix matrix_;
};

}  // namespace

View* make_matrix_view(Document& document, QWidget* parent) {
  return new MatrixView(document, parent);
}

}  // namespace kvspan::gui
