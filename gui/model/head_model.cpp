// SPDX-License-Identifier: Apache-2.0
#include "gui/model/head_model.h"

#include <cstdint>
#include <utility>

#include "gui/model/numbers.h"

namespace kvspan::gui {
namespace {

QString change_text(std::int64_t change) {
  if (change == 0) return "0";
  return (change > 0 ? "+" : QString(QChar(0x2212))) + count_text(change > 0 ? change : -change);
}

QVariant aligned(int column) {
  return QVariant(column < HeadsModel::kEntries ? Qt::AlignLeft | Qt::AlignVCenter
                                                : Qt::AlignRight | Qt::AlignVCenter);
}

}  // namespace

// Internal ids: 0 for what stands at the top (all, and layers), layer + 1 for a layer's heads.

void HeadsModel::set(std::shared_ptr<const Holdings> holdings, const TraceInfo& trace) {
  const bool same = holdings && holdings_ && holdings->layers == holdings_->layers &&
                    holdings->heads == holdings_->heads && layer_ids_ == trace.layer_ids;
  if (same) {  // what is expanded and selected stays
    holdings_ = std::move(holdings);
    emit dataChanged(index(0, 0, {}), index(holdings_->layers, kColumns - 1, {}));
    for (int layer = 0; layer < holdings_->layers; ++layer) {
      const QModelIndex of = index(layer + 1, 0, {});
      emit dataChanged(index(0, 0, of), index(holdings_->heads - 1, kColumns - 1, of));
    }
    return;
  }
  beginResetModel();
  holdings_ = std::move(holdings);
  layer_ids_ = trace.layer_ids;
  endResetModel();
}

HeadScope HeadsModel::scope_of(const QModelIndex& index) const {
  if (!index.isValid()) return {};
  if (index.internalId() > 0) return {static_cast<int>(index.internalId()) - 1, index.row()};
  return {index.row() - 1, -1};
}

QModelIndex HeadsModel::index_of(HeadScope scope) const {
  if (holdings_ == nullptr || scope.layer >= holdings_->layers) return {};
  if (scope.layer < 0) return index(0, 0, {});
  const QModelIndex layer = index(scope.layer + 1, 0, {});
  return scope.head < 0 ? layer : index(scope.head, 0, layer);
}

QModelIndex HeadsModel::index(int row, int column, const QModelIndex& parent) const {
  if (!hasIndex(row, column, parent)) return {};
  return createIndex(row, column, parent.isValid() ? static_cast<quintptr>(parent.row()) : 0);
}

QModelIndex HeadsModel::parent(const QModelIndex& child) const {
  if (!child.isValid() || child.internalId() == 0) return {};
  return createIndex(static_cast<int>(child.internalId()), 0, quintptr{0});
}

int HeadsModel::rowCount(const QModelIndex& parent) const {
  if (holdings_ == nullptr) return 0;
  if (!parent.isValid()) return holdings_->layers + 1;
  const bool layer = parent.internalId() == 0 && parent.row() > 0 && parent.column() == 0;
  return layer ? holdings_->heads : 0;
}

int HeadsModel::columnCount(const QModelIndex& /*parent*/) const { return kColumns; }

QVariant HeadsModel::data(const QModelIndex& index, int role) const {
  if (!index.isValid() || holdings_ == nullptr) return {};
  const int column = index.column();
  if (role == Qt::TextAlignmentRole) return aligned(column);
  if (role != Qt::DisplayRole && role != Qt::EditRole) return {};
  const HeadScope scope = scope_of(index);
  const HeadHolding holding = scope.layer < 0  ? holdings_->sum()
                              : scope.head < 0 ? holdings_->layer_sum(scope.layer)
                                               : holdings_->at(scope.layer, scope.head);
  const std::int64_t heads =
      (scope.layer < 0 ? holdings_->layers : 1) * (scope.head < 0 ? holdings_->heads : 1);
  const double share =
      static_cast<double>(holding.entries) / static_cast<double>(heads * (holdings_->row + 1));
  const std::int64_t change = holding.entries - holding.entries_before;
  const bool shown = role == Qt::DisplayRole;
  switch (column) {
    case kName:
      if (scope.layer < 0) return "all";
      if (scope.head >= 0) return QString("head %1").arg(scope.head);
      return QString("layer %1").arg(layer_ids_[static_cast<std::size_t>(scope.layer)]);
    case kEntries:
      return shown ? QVariant(count_text(holding.entries))
                   : QVariant::fromValue<qlonglong>(holding.entries);
    case kBytes:
      if (holding.bytes == 0 && holding.entries > 0)
        return shown ? QString(QChar(0x2013)) : QString();
      return shown ? QVariant(bytes_text(static_cast<double>(holding.bytes)))
                   : QVariant::fromValue<qlonglong>(holding.bytes);
    case kShare:
      return shown ? QVariant(percent_text(share)) : QVariant(share);
    default:
      return shown ? QVariant(change_text(change)) : QVariant::fromValue<qlonglong>(change);
  }
}

QVariant HeadsModel::headerData(int section, Qt::Orientation orientation, int role) const {
  if (orientation != Qt::Horizontal) return {};
  if (role == Qt::TextAlignmentRole) return aligned(section);
  if (role == Qt::ToolTipRole && holdings_ != nullptr) {
    switch (section) {
      case kShare:
        return "of the entries that a full cache would hold at this row";
      case kChange:
        return QString("entries since row %1").arg(count_text(holdings_->since));
      case kBytes:
        return "on the device, overhead of single entries included, layout ideal";
      default:
        return {};
    }
  }
  if (role != Qt::DisplayRole || section >= kColumns) return {};
  static const char* const names[] = {"layer, head", "entries", "bytes", "of full", "change"};
  return names[section];
}

}  // namespace kvspan::gui
