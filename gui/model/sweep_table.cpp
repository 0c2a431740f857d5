// SPDX-License-Identifier: Apache-2.0
#include "gui/model/sweep_table.h"

#include <cmath>
#include <utility>

#include "gui/model/numbers.h"

namespace kvspan::gui {

void SweepTable::set(SweepPtr sweep) {
  beginResetModel();
  sweep_ = std::move(sweep);
  parameters_.clear();
  for (int p = 0; sweep_ && p < Sweep::parameter_count; ++p) {
    const auto parameter = static_cast<Sweep::Parameter>(p);
    if (parameter == Sweep::method || sweep_->varies(parameter)) parameters_.push_back(parameter);
  }
  // Methods first: they are what people look for.
  for (std::size_t i = 1; i < parameters_.size(); ++i) {
    if (parameters_[i] == Sweep::method) std::swap(parameters_[i], parameters_[0]);
  }
  endResetModel();
}

int SweepTable::rowCount(const QModelIndex& parent) const {
  return parent.isValid() || !sweep_ ? 0 : static_cast<int>(sweep_->cells());
}

int SweepTable::columnCount(const QModelIndex& parent) const {
  return parent.isValid() || !sweep_
             ? 0
             : static_cast<int>(parameters_.size() + sweep_->figures.size());
}

const Sweep::Figure* SweepTable::figure(int column) const {
  const auto at = static_cast<std::size_t>(column);
  return at < parameters_.size() ? nullptr : &sweep_->figures[at - parameters_.size()];
}

QVariant SweepTable::data(const QModelIndex& index, int role) const {
  if (!index.isValid()) return {};
  const auto cell = static_cast<std::size_t>(index.row());
  const Sweep::Figure* of = figure(index.column());
  switch (role) {
    case Qt::ToolTipRole: {
      const QString notes = notes_text(*sweep_, cell);
      return tip_text(notes.isEmpty() ? cell_text(*sweep_, cell) : notes);
    }
    case Qt::TextAlignmentRole:
      return QVariant((of == nullptr ? Qt::AlignLeft : Qt::AlignRight) | Qt::AlignVCenter);
    case Qt::DisplayRole:
    case Qt::EditRole:
    case kSortRole:
      break;
    default:
      return {};
  }
  if (of != nullptr) {
    const double value = of->of_cell[cell];
    return role == Qt::DisplayRole ? QVariant(figure_text(of->unit, value)) : QVariant(value);
  }
  const Sweep::Parameter parameter = parameters_[static_cast<std::size_t>(index.column())];
  const Sweep::Values& values = sweep_->parameters[parameter];
  const auto value = static_cast<std::size_t>(values.of_cell[cell]);
  if (role == kSortRole) return values.of_cell[cell];
  return role == Qt::EditRole ? QString::fromStdString(values.words[value]) : values.texts[value];
}

QVariant SweepTable::headerData(int section, Qt::Orientation orientation, int role) const {
  if (orientation != Qt::Horizontal || section < 0 || section >= columnCount()) return {};
  const Sweep::Figure* of = figure(section);
  if (role == Qt::DisplayRole)
    return of == nullptr ? title_of(parameters_[static_cast<std::size_t>(section)]) : of->title;
  if (role == Qt::ToolTipRole && of != nullptr) return of->help;
  return {};
}

TakenCells::TakenCells(SweepTable& table, QObject* parent)
    : QSortFilterProxyModel(parent), table_(table) {
  setSourceModel(&table);
  setSortRole(SweepTable::kSortRole);
}

void TakenCells::set_filter(const SweepFilter& filter) {
  if (filter == filter_) return;
  filter_ = filter;
  invalidateFilter();
}

bool TakenCells::filterAcceptsRow(int row, const QModelIndex& /*parent*/) const {
  return table_.sweep() == nullptr || filter_.takes(*table_.sweep(), static_cast<std::size_t>(row));
}

}  // namespace kvspan::gui
