// SPDX-License-Identifier: Apache-2.0
// All cells of a sweep as a table that sorts and filters.
#include <QHeaderView>
#include <QLabel>
#include <QTableView>
#include <QVBoxLayout>
#include <algorithm>

#include "gui/model/csv.h"
#include "gui/model/numbers.h"
#include "gui/model/sweep_table.h"
#include "gui/views/sweep_view.h"

namespace kvspan::gui {
namespace {

constexpr int kMostRows = 48;  // of a picture
constexpr int kMostMethodWidth = 320;

class CellsView final : public SweepView {
 public:
  CellsView(Document& document, QWidget* parent)
      : SweepView(document, parent), taken_(model_, nullptr) {
    auto* content = new QWidget(this);
    auto* column = new QVBoxLayout(content);
    column->setContentsMargins(0, 0, 0, 0);
    column->setSpacing(4);
    caption_ = text_line(content, "caption");
    column->addWidget(caption_);
    table_ = new QTableView(content);
    table_->setModel(&taken_);
    set_up_rows(*table_);
    table_->setWordWrap(false);
    table_->setTextElideMode(Qt::ElideMiddle);
    table_->setAccessibleName("cells of the sweep");
    table_->setSortingEnabled(true);
    table_->sortByColumn(-1, Qt::AscendingOrder);
    table_->verticalHeader()->setSectionResizeMode(QHeaderView::Fixed);
    table_->verticalHeader()->setDefaultSectionSize(fontMetrics().height() + 6);
    table_->horizontalHeader()->setHighlightSections(false);
    column->addWidget(table_, 1);
    content->setFocusProxy(table_);
    connect(table_->selectionModel(), &QItemSelectionModel::currentRowChanged, this,
            [this](const QModelIndex& now) {
              if (now.isValid() && !following_) state().set_cell(taken_.mapToSource(now).row());
            });
    connect(table_, &QTableView::activated, this, [this] { state().open_run(); });
    set_content(content);
  }

  [[nodiscard]] QString name() const override { return "cells"; }
  [[nodiscard]] QString title() const override { return "Cells"; }
  [[nodiscard]] QString help() const override {
    return "Every cell of the sweep: a click on a heading sorts, the boxes above filter, a click "
           "on "
           "a line chooses a cell, Enter or a double click opens its run.";
  }
  [[nodiscard]] std::string csv() const override { return csv_of(taken_); }
  [[nodiscard]] QSize picture_size() const override {
    if (!has_content()) return kNoteSize;
    const QSize whole = whole_size(*table_);
    const int rows = std::min(kMostRows, taken_.rowCount());
    const QMargins edge = layout()->contentsMargins();
    return {std::max(whole.width(), kNoteSize.width()) + edge.left() + edge.right(),
            table_->horizontalHeader()->sizeHint().height() + caption_->sizeHint().height() + 8 +
                rows * table_->verticalHeader()->defaultSectionSize() + edge.top() + edge.bottom()};
  }
  void draw(QPainter& painter, const QSize& size) override {
    table_->setVerticalScrollBarPolicy(Qt::ScrollBarAlwaysOff);
    table_->setHorizontalScrollBarPolicy(Qt::ScrollBarAlwaysOff);
    const QString said = caption_->text();
    const QModelIndex chosen = table_->currentIndex();
    following_ = true;
    table_->setCurrentIndex({});
    if (taken_.rowCount() > kMostRows)
      caption_->setText(QString("%1; the first %2").arg(said).arg(kMostRows));
    SweepView::draw(painter, size);
    caption_->setText(said);
    table_->setCurrentIndex(chosen);
    following_ = false;
    table_->setVerticalScrollBarPolicy(Qt::ScrollBarAsNeeded);
    table_->setHorizontalScrollBarPolicy(Qt::ScrollBarAsNeeded);
  }

 protected:
  void rebuild() override {
    following_ = true;
    const bool fresh = model_.sweep() != state().sweep();
    if (fresh) model_.set(state().sweep());
    taken_.set_filter(state().filter());
    const Sweep& sweep = *state().sweep();
    const QString scope = scope_text(state().filter(), sweep);
    caption_->setText(QString("%1: %2 of %3 cells%4")
                          .arg(QString::fromStdString(sweep.path.filename().string()),
                               count_text(static_cast<std::int64_t>(state().taken())),
                               count_text(static_cast<std::int64_t>(sweep.cells())),
                               scope.isEmpty() ? "" : ", " + scope));
    if (fresh) {
      table_->resizeColumnsToContents();
      table_->setColumnWidth(0, std::min(table_->columnWidth(0), kMostMethodWidth));
    }
    following_ = false;
    cell_changed();
  }
  void cell_changed() override {
    if (model_.sweep() != state().sweep() || state().cell() < 0) return;
    const QModelIndex now = taken_.mapFromSource(model_.index(state().cell(), 0));
    if (!now.isValid() || table_->currentIndex().row() == now.row()) return;
    following_ = true;
    table_->setCurrentIndex(now);
    following_ = false;
  }

 private:
  SweepTable model_;
  TakenCells taken_;
  QTableView* table_ = nullptr;
  QLabel* caption_ = nullptr;
  bool following_ = false;
};

}  // namespace

View* make_cells_view(Document& document, QWidget* parent) {
  return new CellsView(document, parent);
}

}  // namespace kvspan::gui
