// SPDX-License-Identifier: Apache-2.0
// Lists of tokens: those that a run holds, and those that only one of two runs holds.
#pragma once

#include <QAbstractTableModel>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "gui/model/kept_sets.h"
#include "gui/model/residents.h"
#include "sim/trace/trace.h"

namespace kvspan::gui {

// Tokens in any order, filtered by their text; what is said of each comes from the models below.
class TokenList : public QAbstractTableModel {
  Q_OBJECT
 public:
  enum Column { kToken, kText, kFirstOfModel };
  void set_filter(const QString& text);  // case does not matter
  [[nodiscard]] std::int64_t token_at(int row) const {
    return tokens_[static_cast<std::size_t>(row)];
  }
  [[nodiscard]] int row_of(std::int64_t token) const;  // -1: not on the list
  [[nodiscard]] int rowCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] int columnCount(const QModelIndex& parent = {}) const override;
  [[nodiscard]] QVariant data(const QModelIndex& index, int role) const override;
  [[nodiscard]] QVariant headerData(int section, Qt::Orientation orientation,
                                    int role) const override;
  void sort(int column, Qt::SortOrder order) override;

 protected:
  struct Heading {
    const char* name;
    const char* tip = "";
  };
  // headings  of all columns; stay
  TokenList(std::span<const Heading> headings, QObject* parent)
      : QAbstractTableModel(parent), headings_(headings) {}
  // Begins anew with `tokens`.
  void set_tokens(std::vector<std::int64_t> tokens, std::shared_ptr<const Trace> trace);
  // What a column of the model's own is sorted by.
  [[nodiscard]] virtual std::int64_t key(std::int64_t token, int column) const = 0;
  // What it shows.
  [[nodiscard]] virtual QString shown(std::int64_t key, int column) const = 0;
  // True of a key that stands for no number.
  [[nodiscard]] virtual bool is_never(std::int64_t /*key*/, int /*column*/) const { return false; }

 private:
  void arrange();
  [[nodiscard]] QString text_of(std::int64_t token) const;
  [[nodiscard]] std::int64_t number(std::int64_t token, int column) const {
    return column < kFirstOfModel ? token : key(token, column);
  }
  std::span<const Heading> headings_;
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
  enum Column { kHeldBy = kFirstOfModel, kFirst, kLast };
  explicit TokensModel(QObject* parent = nullptr);
  void set(std::shared_ptr<const Holdings> holdings, std::shared_ptr<const Trace> trace,
           RowIndex tokens);

 protected:
  [[nodiscard]] std::int64_t key(std::int64_t token, int column) const override;
  [[nodiscard]] QString shown(std::int64_t key, int column) const override;
  [[nodiscard]] bool is_never(std::int64_t key, int column) const override;

 private:
  std::shared_ptr<const Holdings> holdings_;
  RowIndex tokens_in_all_ = 0;
};

// The tokens that some head holds in only one of two runs.
class KeptModel : public TokenList {
  Q_OBJECT
 public:
  enum Column { kCurrent = kFirstOfModel, kBaseline };
  explicit KeptModel(QObject* parent = nullptr);
  void set(std::shared_ptr<const KeptSets> sets, std::shared_ptr<const Trace> trace);

 protected:
  [[nodiscard]] std::int64_t key(std::int64_t token, int column) const override;
  [[nodiscard]] QString shown(std::int64_t key, int column) const override;

 private:
  std::shared_ptr<const KeptSets> sets_;
};

}  // namespace kvspan::gui
