// SPDX-License-Identifier: Apache-2.0
#include "gui/model/residents.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <optional>
#include <utility>

#include "gui/model/lives.h"
#include "gui/model/numbers.h"
#include "sim/base/error.h"
#include "sim/report/lifetimes_file.h"

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
      if (entries == 0 && as.host_bytes > 0) out.host_entries += count[i];
    }
    return out;
  }

 private:
  const LifetimesFile::Run* of_;
  RowIndex row_;
  std::vector<std::vector<int>> held_;
};

QString change_text(std::int64_t change) {
  if (change == 0) return "0";
  return (change > 0 ? "+" : QString(QChar(0x2212))) + count_text(change > 0 ? change : -change);
}

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
  host_entries += other.host_entries;
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
  Holdings out;
  out.row = row;
  out.since = since;
  out.scope = scope;
  out.layers = result.trace.layers();
  out.heads = result.runs[run].heads;
  if (result.lifetimes == nullptr) {
    const Run& of = result.runs[run];
    const std::int64_t bytes = of.one_representation ? of.newborn_bytes : 0;
    for (const Polygon& head : of.heads_over_time) {
      const std::int64_t entries = head.at(row);
      out.of.push_back({entries, entries * bytes, 0, head.at(since), 0});
    }
    return out;
  }
  const LifetimesFile& file = *result.lifetimes;
  const int r = static_cast<int>(run);
  out.held_by.assign(index(row + 1), 0);
  out.first.assign(index(row + 1), kNoDeath);
  out.last.assign(index(row + 1), 0);
  for (int layer = 0; layer < out.layers; ++layer) {
    const std::vector<Change> changes = file.changes(r, layer);
    const HeldAs now(file, r, changes, out.heads, row);
    std::optional<HeldAs> before;  // mostly an instant is looked at
    if (since != row) before.emplace(file, r, changes, out.heads, since);
    for (int head = 0; head < out.heads; ++head) {
      if (cancelled && cancelled()) throw Interrupted();
      const auto deaths = file.deaths(r, layer, head);
      HeadHolding& holding = out.of.emplace_back(now.sum(head, deaths));
      holding.entries_before = before ? before->sum(head, deaths).entries : holding.entries;
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
      return QString("layer %1").arg(layer_ids_[gui::index(scope.layer)]);
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
  if (role == Qt::TextAlignmentRole) return aligned(section, kEntries);
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

// ---- TokenList ----------------------------------------------------------------------------------

void TokenList::set_filter(const QString& text) {
  if (text == filter_) return;
  filter_ = text;
  beginResetModel();
  arrange();
  endResetModel();
}

int TokenList::row_of(std::int64_t token) const {
  const auto found = std::find(tokens_.begin(), tokens_.end(), token);
  return found == tokens_.end() ? -1 : static_cast<int>(found - tokens_.begin());
}

int TokenList::rowCount(const QModelIndex& parent) const {
  return parent.isValid() ? 0 : static_cast<int>(tokens_.size());
}

void TokenList::sort(int column, Qt::SortOrder order) {
  column_ = column;
  order_ = order;
  beginResetModel();
  arrange();
  endResetModel();
}

void TokenList::set_tokens(std::vector<std::int64_t> tokens, std::shared_ptr<const Trace> trace) {
  all_ = std::move(tokens);
  trace_ = std::move(trace);
  arrange();
}

QString TokenList::text_of(std::int64_t token) const { return token_label(trace_.get(), token); }

void TokenList::arrange() {
  tokens_.clear();
  std::copy_if(all_.begin(), all_.end(), std::back_inserter(tokens_), [&](std::int64_t token) {
    return filter_.isEmpty() || text_of(token).contains(filter_, Qt::CaseInsensitive);
  });
  const auto in_order = [&](const auto& key_of) {
    std::stable_sort(tokens_.begin(), tokens_.end(), [&](std::int64_t a, std::int64_t b) {
      return order_ == Qt::AscendingOrder ? key_of(a) < key_of(b) : key_of(b) < key_of(a);
    });
  };
  if (column_ <= 0 && order_ == Qt::AscendingOrder) return;  // as they came
  if (column_ >= 0 && is_text(column_)) {
    in_order([&](std::int64_t token) {
      return trace_ == nullptr ? std::string_view() : trace_->token_text(token);
    });
  } else if (column_ >= 0) {
    in_order([&](std::int64_t token) { return key(token, column_); });
  }
}

// ---- TokensModel --------------------------------------------------------------------------------

void TokensModel::set(std::shared_ptr<const Holdings> holdings, std::shared_ptr<const Trace> trace,
                      RowIndex tokens) {
  beginResetModel();
  holdings_ = std::move(holdings);
  tokens_in_all_ = tokens;
  std::vector<std::int64_t> held;
  if (holdings_ != nullptr) {
    for (std::size_t t = 0; t < holdings_->held_by.size(); ++t) {
      if (holdings_->held_by[t] > 0) held.push_back(static_cast<std::int64_t>(t));
    }
  }
  set_tokens(std::move(held), std::move(trace));
  endResetModel();
}

int TokensModel::columnCount(const QModelIndex& parent) const {
  return parent.isValid() ? 0 : kColumns;
}

std::int64_t TokensModel::key(std::int64_t token, int column) const {
  const std::size_t t = gui::index(token);
  switch (column) {
    case kHeldBy:
      return holdings_->held_by[t];
    case kFirst:
      return holdings_->first[t];
    case kLast:
      return holdings_->last[t];
    default:
      return token;
  }
}

QVariant TokensModel::data(const QModelIndex& index, int role) const {
  if (!index.isValid()) return {};
  const int column = index.column();
  if (role == Qt::TextAlignmentRole) return column == kText ? aligned(0, 1) : aligned(1, 1);
  if (role != Qt::DisplayRole && role != Qt::EditRole) return {};
  const std::int64_t token = token_at(index.row());
  if (column == kText) return text_of(token);
  const std::int64_t value = key(token, column);
  const bool never = (column == kFirst || column == kLast) && value >= tokens_in_all_;
  if (role == Qt::EditRole)
    return never ? QVariant(QString()) : QVariant::fromValue<qlonglong>(value);
  if (never) return "never";
  if (column == kHeldBy) return QString("%1 of %2").arg(value).arg(holdings_->scope_heads);
  return count_text(value);
}

QVariant TokensModel::headerData(int section, Qt::Orientation orientation, int role) const {
  if (orientation != Qt::Horizontal) return {};
  if (role == Qt::TextAlignmentRole) return section == kText ? aligned(0, 1) : aligned(1, 1);
  if (role == Qt::ToolTipRole) {
    static const char* const tips[] = {"index, and the row in which it was born", "",
                                       "heads that hold it at this row",
                                       "the first row at which one of these heads has dropped it",
                                       "the row from which no head holds it"};
    return section < kColumns ? tips[section] : QVariant();
  }
  if (role != Qt::DisplayRole || section >= kColumns) return {};
  static const char* const names[] = {"token", "text", "held by", "first dies", "last dies"};
  return names[section];
}

// ---- Two runs -----------------------------------------------------------------------------------

double Overlap::jaccard() const {
  const std::int64_t either = both + current + baseline;
  return either == 0 ? 1 : static_cast<double>(both) / static_cast<double>(either);
}

Overlap& Overlap::operator+=(const Overlap& other) {
  both += other.both;
  current += other.current;
  baseline += other.baseline;
  return *this;
}

QString why_not_compared(const ShownRun* current, const ShownRun* baseline) {
  for (const ShownRun* shown : {current, baseline}) {
    if (const QString why = why_no_lives(shown); !why.isEmpty()) {
      return shown == nullptr
                 ? why
                 : QString("%1: %2").arg(QString::fromStdString(shown->run().label), why);
    }
  }
  const TraceInfo& a = current->result->trace;
  const TraceInfo& b = baseline->result->trace;
  if (a.tokens != b.tokens || a.layer_ids != b.layer_ids || a.sha256 != b.sha256) {
    return QString(
               "Kept sets are compared on one trace: the current run has %1 tokens in %2 layers, "
               "the baseline %3 in %4%5.")
        .arg(count_text(a.tokens))
        .arg(a.layers())
        .arg(count_text(b.tokens))
        .arg(b.layers())
        .arg(a.tokens == b.tokens && a.layer_ids == b.layer_ids ? ", of another trace" : "");
  }
  const int more = std::max(current->run().heads, baseline->run().heads);
  const int less = std::min(current->run().heads, baseline->run().heads);
  if (more % less != 0) {
    return QString(
               "Kept sets cannot be compared: the current run stores %1 heads, the baseline %2.")
        .arg(current->run().heads)
        .arg(baseline->run().heads);
  }
  return {};
}

KeptSets kept_sets(const ShownRun& current, const ShownRun& baseline, RowIndex row, HeadScope scope,
                   const std::function<bool()>& cancelled) {
  const LifetimesFile& a = *current.result->lifetimes;
  const LifetimesFile& b = *baseline.result->lifetimes;
  const int heads_a = current.run().heads;
  const int heads_b = baseline.run().heads;
  KeptSets out;
  out.row = row;
  out.scope = scope;
  out.layers = a.layers();
  out.heads = std::max(heads_a, heads_b);
  for (auto* tokens : {&out.both, &out.current, &out.baseline}) tokens->assign(index(row + 1), 0);
  for (int layer = 0; layer < out.layers; ++layer) {
    for (int head = 0; head < out.heads; ++head) {
      if (cancelled && cancelled()) throw Interrupted();
      const auto deaths_a =
          a.deaths(static_cast<int>(current.index), layer, head * heads_a / out.heads);
      const auto deaths_b =
          b.deaths(static_cast<int>(baseline.index), layer, head * heads_b / out.heads);
      const bool counts = scope.holds(layer, head);
      Overlap& overlap = out.of.emplace_back();
      for (std::size_t t = 0; t <= index(row); ++t) {
        const bool in_a = static_cast<RowIndex>(deaths_a[t]) > row;
        const bool in_b = static_cast<RowIndex>(deaths_b[t]) > row;
        overlap.both += in_a && in_b ? 1 : 0;
        overlap.current += in_a && !in_b ? 1 : 0;
        overlap.baseline += !in_a && in_b ? 1 : 0;
        if (!counts) continue;
        out.both[t] += in_a && in_b ? 1 : 0;
        out.current[t] += in_a && !in_b ? 1 : 0;
        out.baseline[t] += !in_a && in_b ? 1 : 0;
      }
      if (!counts) continue;
      out.sum += overlap;
      ++out.scope_heads;
    }
  }
  return out;
}

void KeptModel::set(std::shared_ptr<const KeptSets> sets, std::shared_ptr<const Trace> trace) {
  beginResetModel();
  sets_ = std::move(sets);
  std::vector<std::int64_t> differ;
  if (sets_ != nullptr) {
    for (std::size_t t = 0; t < sets_->both.size(); ++t) {
      if (sets_->current[t] + sets_->baseline[t] > 0)
        differ.push_back(static_cast<std::int64_t>(t));
    }
  }
  set_tokens(std::move(differ), std::move(trace));
  endResetModel();
}

int KeptModel::columnCount(const QModelIndex& parent) const {
  return parent.isValid() ? 0 : kColumns;
}

std::int64_t KeptModel::key(std::int64_t token, int column) const {
  const std::size_t t = gui::index(token);
  if (column == kCurrent) return sets_->both[t] + sets_->current[t];
  if (column == kBaseline) return sets_->both[t] + sets_->baseline[t];
  return token;
}

QVariant KeptModel::data(const QModelIndex& index, int role) const {
  if (!index.isValid()) return {};
  const int column = index.column();
  if (role == Qt::TextAlignmentRole) return column == kText ? aligned(0, 1) : aligned(1, 1);
  if (role != Qt::DisplayRole && role != Qt::EditRole) return {};
  const std::int64_t token = token_at(index.row());
  if (column == kText) return text_of(token);
  const std::int64_t value = key(token, column);
  if (role == Qt::EditRole) return QVariant::fromValue<qlonglong>(value);
  if (column == kToken) return count_text(value);
  if (sets_->scope_heads == 1) return value > 0 ? "held" : QString(QChar(0x2013));
  return QString("%1 of %2").arg(value).arg(sets_->scope_heads);
}

QVariant KeptModel::headerData(int section, Qt::Orientation orientation, int role) const {
  if (orientation != Qt::Horizontal) return {};
  if (role == Qt::TextAlignmentRole) return section == kText ? aligned(0, 1) : aligned(1, 1);
  if (role != Qt::DisplayRole || section >= kColumns) return {};
  static const char* const names[] = {"token", "text", "current", "baseline"};
  return names[section];
}

}  // namespace kvspan::gui
