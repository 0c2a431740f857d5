// SPDX-License-Identifier: Apache-2.0
#include "gui/model/token_models.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <string_view>
#include <utility>

#include "gui/model/lives.h"
#include "gui/model/numbers.h"

namespace kvspan::gui {

// ---- TokenList ----------------------------------------------------------------------------------

namespace {

QVariant aligned(int column) {
  return QVariant(column == TokenList::kText ? Qt::AlignLeft | Qt::AlignVCenter
                                             : Qt::AlignRight | Qt::AlignVCenter);
}

}  // namespace

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
  if (column_ == kText) {
    in_order([&](std::int64_t token) {
      return trace_ == nullptr ? std::string_view() : trace_->token_text(token);
    });
  } else if (column_ >= 0) {
    in_order([&](std::int64_t token) { return number(token, column_); });
  }
}

int TokenList::columnCount(const QModelIndex& parent) const {
  return parent.isValid() ? 0 : static_cast<int>(headings_.size());
}

QVariant TokenList::data(const QModelIndex& index, int role) const {
  if (!index.isValid()) return {};
  const int column = index.column();
  if (role == Qt::TextAlignmentRole) return aligned(column);
  if (role != Qt::DisplayRole && role != Qt::EditRole) return {};
  const std::int64_t token = token_at(index.row());
  if (column == kText) return text_of(token);
  const std::int64_t value = number(token, column);
  if (role == Qt::EditRole) {
    return is_never(value, column) ? QVariant(QString()) : QVariant::fromValue<qlonglong>(value);
  }
  return column == kToken ? count_text(value) : shown(value, column);
}

QVariant TokenList::headerData(int section, Qt::Orientation orientation, int role) const {
  if (orientation != Qt::Horizontal) return {};
  if (role == Qt::TextAlignmentRole) return aligned(section);
  if (section >= columnCount()) return {};
  const Heading& heading = headings_[static_cast<std::size_t>(section)];
  if (role == Qt::ToolTipRole) return heading.tip;
  return role == Qt::DisplayRole ? QVariant(heading.name) : QVariant();
}

// ---- TokensModel --------------------------------------------------------------------------------

TokensModel::TokensModel(QObject* parent)
    : TokenList(
          [] {
            static constexpr std::array<Heading, 5> kHeadings{{
                {"token", "index, and the row in which it was born"},
                {"text"},
                {"held by", "heads that hold it at this row"},
                {"first dies", "the first row at which one of these heads has dropped it"},
                {"last dies", "the row from which no head holds it"},
            }};
            return std::span<const Heading>(kHeadings);
          }(),
          parent) {}

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

std::int64_t TokensModel::key(std::int64_t token, int column) const {
  const auto t = static_cast<std::size_t>(token);
  if (column == kHeldBy) return holdings_->held_by[t];
  return column == kFirst ? holdings_->first[t] : holdings_->last[t];
}

QString TokensModel::shown(std::int64_t key, int column) const {
  if (is_never(key, column)) return "never";
  if (column == kHeldBy) return QString("%1 of %2").arg(key).arg(holdings_->scope_heads);
  return count_text(key);
}

bool TokensModel::is_never(std::int64_t key, int column) const {
  return (column == kFirst || column == kLast) && key >= tokens_in_all_;
}

// ---- KeptModel ----------------------------------------------------------------------------------

KeptModel::KeptModel(QObject* parent)
    : TokenList(
          [] {
            static constexpr std::array<Heading, 4> kHeadings{
                {{"token"}, {"text"}, {"current"}, {"baseline"}}};
            return std::span<const Heading>(kHeadings);
          }(),
          parent) {}

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

std::int64_t KeptModel::key(std::int64_t token, int column) const {
  const auto t = static_cast<std::size_t>(token);
  return sets_->both[t] + (column == kCurrent ? sets_->current[t] : sets_->baseline[t]);
}

QString KeptModel::shown(std::int64_t key, int /*column*/) const {
  if (sets_->scope_heads == 1) return key > 0 ? "held" : QString(QChar(0x2013));
  return QString("%1 of %2").arg(key).arg(sets_->scope_heads);
}

}  // namespace kvspan::gui
