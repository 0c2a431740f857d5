// SPDX-License-Identifier: Apache-2.0
#include "gui/window/copying.h"

#include <QAbstractItemView>
#include <QHeaderView>
#include <QItemSelectionModel>
#include <QStringList>
#include <QTableView>
#include <QTextDocumentFragment>
#include <QToolTip>
#include <algorithm>

#include "gui/views/view.h"

namespace kvspan::gui {
namespace {

// The chosen rows of a table or tree with the names of its columns.
QString lines_of(const QAbstractItemView& view) {
  const QAbstractItemModel* model = view.model();
  if (model == nullptr || view.selectionModel() == nullptr) return {};
  QModelIndexList rows = view.selectionModel()->selectedRows();
  if (rows.isEmpty() && view.currentIndex().isValid())
    rows << view.currentIndex().siblingAtColumn(0);
  if (rows.isEmpty()) return {};
  std::sort(rows.begin(), rows.end());
  const auto hidden = [&](int column) {
    const auto* table = qobject_cast<const QTableView*>(&view);
    return table != nullptr && table->isColumnHidden(column);
  };
  const auto line = [&](const auto& text) {
    QStringList fields;
    for (int c = 0; c < model->columnCount(); ++c) {
      if (!hidden(c)) fields << text(c).simplified();
    }
    return fields.join('\t');
  };
  QStringList lines{line(
      [&](int c) { return model->headerData(c, Qt::Horizontal, Qt::DisplayRole).toString(); })};
  for (const QModelIndex& row : rows)
    lines << line([&](int c) { return row.siblingAtColumn(c).data().toString(); });
  return lines.join('\n');
}

}  // namespace

QString copied_text(const View* under, const QWidget* focus, const View* current) {
  if (QToolTip::isVisible()) return QTextDocumentFragment::fromHtml(QToolTip::text()).toPlainText();
  if (under != nullptr) {
    const QString text = under->hovered_text();
    if (!text.isEmpty()) return text;
  }
  if (const auto* table = qobject_cast<const QAbstractItemView*>(focus)) {
    const QString text = lines_of(*table);
    if (!text.isEmpty()) return text;
  }
  return current == nullptr ? QString() : current->hovered_text();
}

}  // namespace kvspan::gui
