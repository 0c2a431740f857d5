// SPDX-License-Identifier: Apache-2.0
// The runs beside the charts: two lines each, with the pen that charts draw them with.
#pragma once

#include <QListView>

#include "gui/model/document.h"

class QSortFilterProxyModel;

namespace kvspan::gui {

class RunTable;

class RunList : public QListView {
  Q_OBJECT
 public:
  RunList(Document& document, QWidget* parent);
  // By a column of RunTable, the largest first; -1: as opened.
  void sort_by(int column);

 private:
  void follow();
  Document& document_;
  RunTable* model_ = nullptr;
  QSortFilterProxyModel* sorted_ = nullptr;
};

}  // namespace kvspan::gui
