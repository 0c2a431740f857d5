// SPDX-License-Identifier: Apache-2.0
#include "gui/residents.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <numeric>
#include <utility>

#include "gui/lives.h"
#include "sim/error.h"
#include "sim/lifetimes_file.h"

namespace kvspan::gui {
namespace {

std::size_t index(std::int64_t value) { return static_cast<std::size_t>(value); }

constexpr std::uint32_t kNoDeath = std::numeric_limits<std::uint32_t>::max();

// How the entries of one layer are held at a row: [heads][token], only those that changed.
class HeldAs {
 public:
  HeldAs(const LifetimesFile& file, int run, const std::vector<Change>& changes, int heads,
         RowIndex row)
      : of_(&file.runs()[index(run)]), row_(row), held_(index(heads)) {
    for (const Change& change : changes) {
      // An entry is born as representation 0, so that the next row is the first that can differ.
      if (std::max<RowIndex>(change.row, change.token + 1) > row) continue;
      std::vector<int>& head = held_[index(change.head)];
      if (head.empty()) head.assign(index(row + 1), 0);
      head[index(change.token)] = change.representation;
    }
  }

  // Of all entries of a head that are there.
  [[nodiscard]] HeadHolding sum(int head, std::span<const std::uint32_t> deaths) const {
    const std::vector<int>& held = held_[index(head)];
    std::vector<std::int64_t> count(of_->representations.size(), 0);
    for (RowIndex t = 0; t <= row_; ++t) {
      if (static_cast<RowIndex>(deaths[index(t)]) <= row_) continue;
      ++count[held.empty() ? 0 : index(held[index(t)])];
    }
    HeadHolding out;
    for (std::size_t i = 0; i < count.size(); ++i) {
      const Representation& as = of_->representations[i];
      const std::int64_t entries = as.entries >= 0 ? as.entries : as.device_bytes > 0 ? 1 : 0;
      out.entries += count[i] * entries;
      out.bytes += count[i] * (as.device_bytes + entries * of_->charge.entry);
      out.host_bytes += count[i] * as.host_bytes;
    }
    return out;
  }

 private:
  const LifetimesFile::Run* of_;
  RowIndex row_;
  std::vector<std::vector<int>> held_;
};

QVariant aligned(int column, int first_number) {
  return QVariant(column < first_number ? Qt::AlignLeft | Qt::AlignVCenter
                                        : Qt::AlignRight | Qt::AlignVCenter);
}

}  // namespace

HeadHolding& HeadHolding::operator+=(const HeadHolding& other) {
  entries += other.entries;
  bytes += other.bytes;
  host_bytes += other.host_bytes;
  entries_before += other.entries_before;
  return *this;
}

HeadHolding Holdings::layer_sum(int layer) const {
  HeadHolding sum;
  for (int head = 0; head < heads; ++head) sum += at(layer, head);
  return sum;
}

HeadHolding Holdings::sum() const {
  HeadHolding sum;
  for (const HeadHolding& head : of) sum += head;
  return sum;
}

Holdings holdings_at(const Result& result, std::size_t run, RowIndex row, RowIndex since,
                     HeadScope scope, const std::function<bool()>& cancelled) {
  const LifetimesFile& file = *result.lifetimes;
  const int r = static_cast<int>(run);
  Holdings out;
  out.row = row;
  out.since = since;
  out.scope = scope;
  out.layers = file.layers();
  out.heads = file.runs()[run].heads;
  out.held_by.assign(index(row + 1), 0);
  out.first.assign(index(row + 1), kNoDeath);
  out.last.assign(index(row + 1), 0);
  for (int layer = 0; layer < out.layers; ++layer) {
    const std::vector<Change> changes = file.changes(r, layer);
    const HeldAs now(file, r, changes, out.heads, row);
    const HeldAs before(file, r, changes, out.heads, since);
    for (int head = 0; head < out.heads; ++head) {
      if (cancelled && cancelled()) throw Interrupted();
      const auto deaths = file.deaths(r, layer, head);
      HeadHolding& holding = out.of.emplace_back(now.sum(head, deaths));
      holding.entries_before = before.sum(head, deaths).entries;
      if (!scope.holds(layer, head)) continue;
      ++out.scope_heads;
      for (std::size_t t = 0; t <= index(row); ++t) {
        if (static_cast<RowIndex>(deaths[t]) <= row) continue;
        ++out.held_by[t];
        out.first[t] = std::min(out.first[t], deaths[t]);
        out.last[t] = std::max(out.last[t], deaths[t]);
      }
    }
  }
  return out;
}

// ---- HeadsModel ---------------------------------------------------------------------------------

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
  if (role == Qt::TextAlignmentRole) return aligned(column, kEntries);
  if (role != Qt::DisplayRole && role != Qt::EditRole) return {};
  const HeadScope scope = scope_of(index);
  const HeadHolding holding = scope.layer < 0  ? holdings_->sum()
                              : scope.head < 0 ? holdings_->layer_sum(scope.layer)
                                               : holdings_->at(scope.layer, scope.head);
  const std::int64_t heads = (scope.layer < 0 ? holdings_->layers : 1) *
                             (scope.head < 0 ? holdings_->heads : 1);
  const double share =
      static_cast<double>(holding.entries) / static_cast<double>(heads * (holdings_->row + 1));
  const std::int64_t change = holding.entries - holding.entries_before;
  const bool shown = role == Qt::DisplayRole;
  switch (column) {
    case kName:
      if (scope.layer < 0) return "all";
      if (scope.head >= 0) return QString("head %1").arg(scope.head);
      return QString("layer %1").arg(layer_ids_[gui::index(scope.layer)]);
    case kEntries:
      return shown ? QVariant(count_text(holding.entries)) : QVariant::fromValue<qlonglong>(holding.entries);
    case kBytes:
      return shown ? QVariant(bytes_text(static_cast<double>(holding.bytes)))
                   : QVariant::fromValue<qlonglong>(holding.bytes);
    case kShare:
      return shown ? QVariant(percent_text(share)) : QVariant(share);
    default:
      return shown ? QVariant(change_text(change)) : QVariant::fromValue<qlonglong>(change);
  }
}
