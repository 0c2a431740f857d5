// SPDX-License-Identifier: Apache-2.0
#include "gui/views/chart_and_table.h"

#include <QBoxLayout>
#include <QHeaderView>
#include <algorithm>

#include "gui/paint/mark_delegate.h"
#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

constexpr QSize kCurves(1000, 600);  // of pictures
constexpr int kMostLinesBelow = 30;  // of the table in a picture
constexpr int kWidestBeside = 460;

}  // namespace

ChartAndTable::ChartAndTable(PlainTable* model, QWidget* parent)
    : QWidget(parent),
      plot_(new CurvePlot(this)),
      table_(new QTableView(this)),
      row_(new QBoxLayout(QBoxLayout::LeftToRight, this)) {
  row_->setContentsMargins(0, 0, 0, 0);
  row_->setSpacing(6);
  table_->setModel(model);
  table_->setItemDelegate(new MarkDelegate(PlainTable::colour_role, PlainTable::mark_role, table_));
  set_up_rows(*table_);
  table_->setAlternatingRowColors(false);
  table_->setWordWrap(false);
  table_->setTabKeyNavigation(false);
  table_->setAccessibleName("critical footprints");
  table_->verticalHeader()->setDefaultSectionSize(fontMetrics().height() + 6);
  table_->horizontalHeader()->setHighlightSections(false);
  table_->horizontalHeader()->setDefaultAlignment(Qt::AlignLeft | Qt::AlignVCenter);
  table_->setSizePolicy(QSizePolicy::Preferred, QSizePolicy::Ignored);
  table_->setMaximumWidth(kWidestBeside);
  row_->addWidget(plot_, 5);
  row_->addWidget(table_, 4);
  setFocusProxy(plot_);
  const auto choose = [this](const QModelIndex& index) {
    const int item = index.data(PlainTable::item_role).toInt();
    if (row_chosen && item >= 0) row_chosen(item);
  };
  connect(table_, &QTableView::activated, this, choose);
  connect(table_, &QTableView::clicked, this, choose);
}

void ChartAndTable::fit_table() {
  table_->horizontalHeader()->setSectionResizeMode(QHeaderView::ResizeToContents);
}

int ChartAndTable::paper_height() const {
  const int over = table_->model()->rowCount() - kMostLinesBelow;
  return whole_size(*table_).height() -
         std::max(0, over) * table_->verticalHeader()->defaultSectionSize();
}

void ChartAndTable::set_paper(bool paper) {
  row_->setDirection(paper ? QBoxLayout::TopToBottom : QBoxLayout::LeftToRight);
  const auto bars = paper ? Qt::ScrollBarAlwaysOff : Qt::ScrollBarAsNeeded;
  table_->setHorizontalScrollBarPolicy(bars);
  table_->setVerticalScrollBarPolicy(bars);
  if (paper) {
    table_->setMaximumWidth(QWIDGETSIZE_MAX);
    table_->setFixedHeight(paper_height());
  } else {
    table_->setMinimumHeight(0);
    table_->setMaximumSize(kWidestBeside, QWIDGETSIZE_MAX);
  }
}

QSize ChartAndTable::picture_size() const {
  return {std::max(kCurves.width(), whole_size(*table_).width()),
          kCurves.height() + row_->spacing() + paper_height()};
}

}  // namespace kvspan::gui
