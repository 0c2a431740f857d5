// SPDX-License-Identifier: Apache-2.0
// All runs with all their figures, as a table.
#include <QHeaderView>
#include <QSortFilterProxyModel>
#include <QTableView>
#include <QVBoxLayout>

#include "gui/model/csv.h"
#include "gui/model/run_table.h"
#include "gui/paint/theme.h"
#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

constexpr int kFileWidth = 110;

class RunsView final : public View {
 public:
  RunsView(Document& document, QWidget* parent) : View(document, parent) {
    model_ = new RunTable(document, this);
    sorted_ = new QSortFilterProxyModel(this);
    sorted_->setSourceModel(model_);
    sorted_->setSortRole(Qt::EditRole);
    table_ = new QTableView;
    table_->setAccessibleName("Table of runs");
    table_->setModel(sorted_);
    set_up_rows(*table_);
    table_->setTextElideMode(Qt::ElideMiddle);
    table_->verticalHeader()->setSectionResizeMode(QHeaderView::ResizeToContents);
    table_->horizontalHeader()->setSectionResizeMode(QHeaderView::ResizeToContents);
    table_->horizontalHeader()->setSectionResizeMode(RunTable::label, QHeaderView::Stretch);
    table_->horizontalHeader()->setSectionResizeMode(RunTable::file, QHeaderView::Interactive);
    table_->horizontalHeader()->resizeSection(RunTable::file, kFileWidth);
    table_->horizontalHeader()->setHighlightSections(false);
    table_->setSortingEnabled(true);
    table_->sortByColumn(-1, Qt::AscendingOrder);
    auto* layout = new QVBoxLayout(this);
    layout->setContentsMargins(0, 0, 0, 0);
    layout->addWidget(table_);
    setFocusProxy(table_);
    connect(table_->selectionModel(), &QItemSelectionModel::currentRowChanged, this,
            [this](const QModelIndex& now) {
              if (now.isValid()) this->document().set_current(sorted_->mapToSource(now).row());
            });
    connect(&document, &Document::current_changed, this, [this] { follow(); });
    follow();
  }

  [[nodiscard]] QString name() const override { return "runs"; }
  [[nodiscard]] QString title() const override { return "Runs"; }
  [[nodiscard]] QString help() const override {
    return "Every run with its figures, and what it holds at both ends of the selected rows; a "
           "click on a heading sorts.";
  }
  [[nodiscard]] std::string csv() const override { return csv_of(*sorted_); }
  [[nodiscard]] QSize picture_size() const override {
    return whole_size(*table_).expandedTo({kNoteSize.width(), 40});
  }

 private:
  void follow() {
    const QModelIndex now =
        sorted_->mapFromSource(model_->index(this->document().current(), RunTable::label));
    if (now.isValid() && table_->currentIndex().row() != now.row()) table_->setCurrentIndex(now);
  }

  RunTable* model_ = nullptr;
  QSortFilterProxyModel* sorted_ = nullptr;
  QTableView* table_ = nullptr;
};

}  // namespace

View* make_runs_view(Document& document, QWidget* parent) { return new RunsView(document, parent); }

}  // namespace kvspan::gui
