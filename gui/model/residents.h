// SPDX-License-Identifier: Apache-2.0
// What a run holds at one row: by layer and head, by token, and beside what another run holds.
#pragma once

#include <QAbstractItemModel>
#include <QAbstractTableModel>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gui/model/document.h"

namespace kvspan::gui {

// Heads that are looked at: one, those of a layer, or all (-1).
struct HeadScope {
  int layer = -1, head = -1;
  [[nodiscard]] bool holds(int l, int h) const {
    return (layer < 0 || layer == l) && (head < 0 || head == h);
  }
  bool operator==(const HeadScope&) const = default;
};

struct HeadHolding {
  std::int64_t entries = 0;  // on the device
  std::int64_t bytes = 0;    // of them on the device, overhead per entry included, as if ideal
  std::int64_t host_bytes = 0;
  std::int64_t entries_before = 0;  // on the device at the row that it is compared with
  std::int64_t host_entries = 0;    // on the host alone
  HeadHolding& operator+=(const HeadHolding& other);
};

// What is there while `row` attends: entries with token <= row < death.
struct Holdings {
  RowIndex row = 0, since = 0;
  int layers = 0, heads = 0;
  std::vector<HeadHolding> of;  // [layers, heads]
  // Of the tokens up to `row`, in the scope's heads:
  HeadScope scope;
  int scope_heads = 0;
  std::vector<std::int32_t> held_by;       // [row + 1] heads that hold it
  std::vector<std::uint32_t> first, last;  // [row + 1] its first and last death after the row
  [[nodiscard]] const HeadHolding& at(int layer, int head) const {
    return of[static_cast<std::size_t>(layer * heads + head)];
  }
  [[nodiscard]] HeadHolding layer_sum(int layer) const;
  [[nodiscard]] HeadHolding sum() const;
};

// Without lifetimes: entries of heads_over_time, bytes if all entries cost the same (else 0), and
// no tokens.
// REQUIRES: result.lifetimes or heads_over_time, 0 <= since, row < tokens.
// Cost: O(heads * tokens + changes).
// Errors: TraceError of a damaged file; Interrupted.
[[nodiscard]] Holdings holdings_at(const Result& result, std::size_t run, RowIndex row,
                                   RowIndex since, HeadScope scope,
                                   const std::function<bool()>& cancelled);

// Totals, layers, and their heads.
class HeadsModel : public QAbstractItemModel {
  Q_OBJECT
 public:
  enum Column { kName, kEntries, kBytes, kShare, kChange, kColumns };
  using QAbstractItemModel::QAbstractItemModel;

  void set(std::shared_ptr<const Holdings> holdings, const TraceInfo& trace);
  [[nodiscard]] HeadScope scope_of(const QModelIndex& index) const;
  [[nodiscard]] QModelIndex index_of(HeadScope scope) const;

  [[nodiscard]] QModelIndex index(int row, int column, const QModelIndex& parent) const override;
  [[nodiscard]] QModelIndex parent(const QModelIndex& child) const override;
  [[nodiscard]] int rowCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] int columnCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] QVariant data(const QModelIndex& index, int role) const override;
  [[nodiscard]] QVariant headerData(int section, Qt::Orientation orientation,
                                    int role) const override;

 private:
  std::shared_ptr<const Holdings> holdings_;
  std::vector<int> layer_ids_;
};

// A list of tokens in any order, filtered by their text: what TokensModel and KeptModel share.
class TokenList : public QAbstractTableModel {
  Q_OBJECT
 public:
  using QAbstractTableModel::QAbstractTableModel;
  void set_filter(const QString& text);  // case does not matter
  [[nodiscard]] std::int64_t token_at(int row) const {
    return tokens_[static_cast<std::size_t>(row)];
  }
  [[nodiscard]] int row_of(std::int64_t token) const;  // -1: not on the list
  [[nodiscard]] int rowCount(const QModelIndex& parent = {}) const override;
  void sort(int column, Qt::SortOrder order) override;

 protected:
  // Begins anew with `tokens`.
  void set_tokens(std::vector<std::int64_t> tokens, std::shared_ptr<const Trace> trace);
  [[nodiscard]] QString text_of(std::int64_t token) const;
  // What a column is sorted by; texts sort by themselves.
  [[nodiscard]] virtual std::int64_t key(std::int64_t token, int column) const = 0;
  [[nodiscard]] virtual bool is_text(int column) const = 0;

 private:
  void arrange();
  std::vector<std::int64_t> all_, tokens_;
  std::shared_ptr<const Trace> trace_;
  QString filter_;
  int column_ = 0;
  Qt::SortOrder order_ = Qt::AscendingOrder;
};

// The tokens that are held in the scope.
class TokensModel : public TokenList {
  Q_OBJECT
 public:
  enum Column { kToken, kText, kHeldBy, kFirst, kLast, kColumns };
  using TokenList::TokenList;
  void set(std::shared_ptr<const Holdings> holdings, std::shared_ptr<const Trace> trace,
           RowIndex tokens);
  [[nodiscard]] int columnCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] QVariant data(const QModelIndex& index, int role) const override;
  [[nodiscard]] QVariant headerData(int section, Qt::Orientation orientation,
                                    int role) const override;

 protected:
  [[nodiscard]] std::int64_t key(std::int64_t token, int column) const override;
  [[nodiscard]] bool is_text(int column) const override { return column == kText; }

 private:
  std::shared_ptr<const Holdings> holdings_;
  RowIndex tokens_in_all_ = 0;
};

// ---- Two runs -----------------------------------------------------------------------------------

struct Overlap {
  std::int64_t both = 0, current = 0, baseline = 0;  // held by both, by only one
  // Of what either holds; 1 if nothing is held.
  [[nodiscard]] double jaccard() const;
  Overlap& operator+=(const Overlap& other);
};

// What two runs hold while `row` attends.
struct KeptSets {
  RowIndex row = 0;
  HeadScope scope;
  int layers = 0, heads = 0;
  std::vector<Overlap> of;  // [layers, heads]
  Overlap sum;              // of the scope
  int scope_heads = 0;
  std::vector<std::int32_t> both, current, baseline;  // [row + 1] heads of the scope
  [[nodiscard]] const Overlap& at(int layer, int head) const {
    return of[static_cast<std::size_t>(layer * heads + head)];
  }
};

// Why kept sets of two runs cannot be compared; empty if they can.
[[nodiscard]] QString why_not_compared(const ShownRun* current, const ShownRun* baseline);

// Where one run stores fewer heads, each of them is compared with all that it stands for.
//   scope  of the heads of the run that stores more
// REQUIRES: why_not_compared() is empty, row < tokens. Errors: as holdings_at().
[[nodiscard]] KeptSets kept_sets(const ShownRun& current, const ShownRun& baseline, RowIndex row,
                                 HeadScope scope, const std::function<bool()>& cancelled);

// The tokens that some head holds in only one of the runs.
class KeptModel : public TokenList {
  Q_OBJECT
 public:
  enum Column { kToken, kText, kCurrent, kBaseline, kColumns };
  using TokenList::TokenList;
  void set(std::shared_ptr<const KeptSets> sets, std::shared_ptr<const Trace> trace);
  [[nodiscard]] int columnCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] QVariant data(const QModelIndex& index, int role) const override;
  [[nodiscard]] QVariant headerData(int section, Qt::Orientation orientation,
                                    int role) const override;

 protected:
  [[nodiscard]] std::int64_t key(std::int64_t token, int column) const override;
  [[nodiscard]] bool is_text(int column) const override { return column == kText; }

 private:
  std::shared_ptr<const KeptSets> sets_;
};

}  // namespace kvspan::gui
