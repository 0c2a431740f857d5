// SPDX-License-Identifier: Apache-2.0
#include "gui/window/run_list.h"

#include <QApplication>
#include <QPainter>
#include <QSortFilterProxyModel>
#include <QStyledItemDelegate>

#include "gui/model/run_table.h"
#include "gui/paint/theme.h"

namespace kvspan::gui {
namespace {

constexpr int kMargin = 5;
constexpr int kSwatch = 22;

QString cell(const QModelIndex& index, int column) {
  return index.sibling(index.row(), column).data().toString();
}

class Delegate final : public QStyledItemDelegate {
 public:
  Delegate(const Document& document, QObject* parent)
      : QStyledItemDelegate(parent), document_(document) {}

  [[nodiscard]] QSize sizeHint(const QStyleOptionViewItem& option,
                               const QModelIndex&) const override {
    return {120, 2 * option.fontMetrics.height() + 2 * kMargin};
  }

  void paint(QPainter* painter, const QStyleOptionViewItem& option,
             const QModelIndex& index) const override {
    QStyleOptionViewItem box = option;
    initStyleOption(&box, index);
    const QString label = box.text;
    box.text.clear();
    // Backgrounds, focus and the check box are the style's; it puts the box in the middle.
    box.features &= ~QStyleOptionViewItem::HasDisplay;
    const QStyle* style = box.widget != nullptr ? box.widget->style() : QApplication::style();
    style->drawControl(QStyle::CE_ItemViewItem, &box, painter, box.widget);

    painter->save();
    painter->setRenderHint(QPainter::Antialiasing);
    const bool selected = option.state.testFlag(QStyle::State_Selected);
    const bool visible = index.data(Qt::CheckStateRole).toInt() == Qt::Checked;
    const QColor ink = option.palette.color(selected ? QPalette::HighlightedText : QPalette::Text);
    QColor faint = selected ? ink : theme().faint;
    if (selected) faint.setAlphaF(0.85F);
    const int height = option.fontMetrics.height();
    QRect text = option.rect.adjusted(28, kMargin, -8, 0);
    text.setHeight(height);

    const QRect swatch(text.left(), text.top(), kSwatch, height);
    if (selected) {
      painter->fillRect(swatch.adjusted(-2, 2, 2, -2), theme().paper);
    }
    painter->setPen(run_pen(index.data(RunTable::slot_role).toInt(), 3,
                            index.data(RunTable::measured_role).toBool()));
    painter->drawLine(QPointF(swatch.left(), swatch.center().y() + 0.5),
                      QPointF(swatch.right(), swatch.center().y() + 0.5));

    QFont font = option.font;
    font.setBold(index.data(RunTable::current_role).toBool());
    painter->setFont(font);
    painter->setPen(visible || selected ? ink : theme().faint);
    const QRect title = text.adjusted(kSwatch + 8, 0, 0, 0);
    const QString mark = index.data(RunTable::baseline_role).toBool() ? "   baseline" : "";
    const QFontMetrics metrics(font);
    painter->drawText(title, Qt::AlignVCenter,
                      metrics.elidedText(label, Qt::ElideMiddle,
                                         title.width() - metrics.horizontalAdvance(mark)) +
                          mark);

    painter->setFont(option.font);
    painter->setPen(faint);
    text.translate(0, height);
    const Rows rows = document_.selection();
    QString held = cell(index, RunTable::at_end);
    if (rows.size() > 1) {
      held = QString("%1 %2 %3  %4")
                 .arg(cell(index, RunTable::at_begin), QChar(0x2192), held,
                      cell(index, RunTable::delta));
      painter->drawText(text, Qt::AlignVCenter,
                        option.fontMetrics.elidedText(held, Qt::ElideRight, text.width()));
    } else {
      const int third = text.width() / 3;
      painter->drawText(text, Qt::AlignVCenter, cell(index, RunTable::footprint));
      painter->drawText(text.adjusted(third, 0, 0, 0), Qt::AlignVCenter,
                        cell(index, RunTable::retained));
      painter->drawText(text, Qt::AlignVCenter | Qt::AlignRight, held);
    }
    painter->restore();
  }

 private:
  const Document& document_;
};

}  // namespace

RunList::RunList(Document& document, QWidget* parent) : QListView(parent), document_(document) {
  setObjectName("run_list");
  setAccessibleName("Runs");
  setUniformItemSizes(true);
  setFrameShape(QFrame::NoFrame);
  setVerticalScrollMode(QAbstractItemView::ScrollPerPixel);
  model_ = new RunTable(document, this);
  sorted_ = new QSortFilterProxyModel(this);
  sorted_->setSourceModel(model_);
  sorted_->setSortRole(Qt::EditRole);
  setModel(sorted_);
  setItemDelegate(new Delegate(document, this));
  connect(selectionModel(), &QItemSelectionModel::currentRowChanged, this,
          [this](const QModelIndex& now) {
            if (now.isValid()) document_.set_current(sorted_->mapToSource(now).row());
          });
  connect(&document, &Document::current_changed, this, &RunList::follow);
  follow();
}

void RunList::sort_by(int column) { sorted_->sort(column, Qt::DescendingOrder); }

void RunList::follow() {
  const QModelIndex now = sorted_->mapFromSource(model_->index(document_.current(), 0));
  if (now.isValid() && currentIndex().row() != now.row()) setCurrentIndex(now);
}

}  // namespace kvspan::gui
