// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/reads.h"

#include <algorithm>
#include <iterator>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policy/layer_policy.h"

namespace kvspan {
namespace {

void set_bit(std::uint8_t* bits, TokenIndex t) {
  bits[t / 8] = static_cast<std::uint8_t>(bits[t / 8] | (1U << (static_cast<unsigned>(t) % 8U)));
}

}  // namespace

PassReads::PassReads(const Policy& policy, const LayerShape& shape, const Residency& residency,
                     Ledger& ledger)
    : policy_(policy),
      shape_(shape),
      residency_(residency),
      ledger_(ledger),
      reads_(static_cast<std::size_t>(shape.query_heads)),
      // Also in a layer that is left alone, whose rows read everything.
      loaded_(ledger.selected.size(), 0) {}

bool PassReads::everything(int query_head) const {
  return residency_.whole(query_head / shape_.group()) && !by_row() &&
         chosen(query_head) == nullptr;
}

const std::vector<TokenIndex>* PassReads::chosen(int query_head) const {
  const auto& attended = reads_[static_cast<std::size_t>(query_head)].attended;
  return attended ? &*attended : nullptr;
}

const float* PassReads::mask(int query_head) const {
  return chosen(query_head) != nullptr ? mask_[static_cast<std::size_t>(query_head)].data()
                                       : residency_.mask(query_head / shape_.group()).data();
}

const float* PassReads::row_mask(int query_head, RowIndex row, const View& view,
                                 std::vector<float>& storage) const {
  const std::vector<float>& residents = residency_.mask(query_head / shape_.group());
  storage.assign(residents.size(), 0.0F);
  std::copy(residents.begin(), residents.begin() + row + 1, storage.begin());
  if (row >= view.pass().begin) selector_->mask(view, query_head, row, storage);
  return storage.data();
}

void PassReads::begin(Selector* selector, const View& view, const LayerScores& scores) {
  selector_ = selector;
  reads_.assign(reads_.size(), {});
  if (by_row()) return;  // counted row by row
  if (selector_ != nullptr) choose(view);
  if (!loaded_.empty()) count(view.pass(), scores);
}

void PassReads::choose(const View& view) {
  selector_->select(view, reads_);
  mask_.resize(reads_.size());
  for (std::size_t q = 0; q < reads_.size(); ++q) {
    if (!reads_[q].attended) continue;
    const int head = static_cast<int>(q) / shape_.group();
    mask_[q].assign(residency_.mask(head).size(), 0.0F);
    for (const TokenIndex token : *reads_[q].attended) {
      if (!residency_.holds(head, token)) {
        throw PolicyError(fmt::format("{}: query head {} selects token {}, which is not resident",
                                      at(policy_, shape_, view.pass()), q, token));
      }
      mask_[q][static_cast<std::size_t>(token)] = 1.0F;
    }
  }
}

template <class ListOf>
std::vector<TokenIndex> PassReads::united(int head, ListOf list_of) const {
  std::vector<TokenIndex> tokens;
  std::vector<TokenIndex> more;
  for (int q = head * shape_.group(); q < (head + 1) * shape_.group(); ++q) {
    const std::optional<std::vector<TokenIndex>>& list =
        list_of(reads_[static_cast<std::size_t>(q)]);
    if (!list) {
      const std::span<const TokenIndex> all = residency_.entries(head);
      return {all.begin(), all.end()};
    }
    more.clear();
    std::set_union(tokens.begin(), tokens.end(), list->begin(), list->end(),
                   std::back_inserter(more));
    tokens.swap(more);
  }
  return tokens;
}

// Counts the entries that each row loads, and keeps those that sampled rows attend to.
void PassReads::count(const Pass& pass, const LayerScores& scores) {
  const auto in_row = [&](const std::vector<TokenIndex>& tokens, RowIndex row) {
    return std::pair(std::lower_bound(tokens.begin(), tokens.end(), scores.first_key(row)),
                     std::upper_bound(tokens.begin(), tokens.end(), row));
  };
  for (int head = 0; head < shape_.heads; ++head) {
    const std::vector<TokenIndex> loaded = united(head, [](const Reads& reads) -> const auto& {
      return reads.loaded ? reads.loaded : reads.attended;
    });
    for (RowIndex row = pass.begin; row < pass.end; ++row) {
      const auto [first, last] = in_row(loaded, row);
      loaded_[static_cast<std::size_t>(row)] += last - first;
    }
    if (ledger_.read_rows.empty()) continue;
    const std::vector<TokenIndex> attended =
        united(head, [](const Reads& reads) -> const auto& { return reads.attended; });
    for (RowIndex row = pass.begin; row < pass.end; ++row) {
      std::uint8_t* kept = bits(head, row);
      if (kept == nullptr) continue;
      const auto [first, last] = in_row(attended, row);
      std::for_each(first, last, [&](TokenIndex t) { set_bit(kept, t); });
    }
  }
}

void PassReads::count_rows(int head, RowIndex begin, const std::vector<std::vector<char>>& read) {
  for (std::size_t i = 0; i < read.size(); ++i) {
    loaded_[static_cast<std::size_t>(begin) + i] += std::count(read[i].begin(), read[i].end(), 1);
    std::uint8_t* kept = bits(head, begin + static_cast<RowIndex>(i));
    for (std::size_t t = 0; kept != nullptr && t < read[i].size(); ++t) {
      if (read[i][t] != 0) set_bit(kept, static_cast<TokenIndex>(t));
    }
  }
}

std::uint8_t* PassReads::bits(int head, RowIndex row) {
  const std::vector<RowIndex>& rows = ledger_.read_rows;
  const auto at = std::lower_bound(rows.begin(), rows.end(), row);
  if (at == rows.end() || *at != row) return nullptr;
  return ledger_.reads.data() +
         ledger_.reads_offset(shape_.layer, head, static_cast<std::size_t>(at - rows.begin()));
}

}  // namespace kvspan
