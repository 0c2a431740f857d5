// SPDX-License-Identifier: Apache-2.0
// What the rows of a pass read of what is resident: all of it, or what a selector chose, for the
// pass or row by row; and how much that is.
#pragma once

#include <cstdint>
#include <vector>

#include "sim/attention/layer_scores.h"
#include "sim/ledger/ledger.h"
#include "sim/policy/policy.h"
#include "sim/replay/residency.h"

namespace kvspan {

class PassReads {
 public:
  // Reads of sampled rows are kept in the ledger, which says which they are.
  PassReads(const Policy& policy, const LayerShape& shape, const Residency& residency,
            Ledger& ledger);

  // A pass begins, under this selector; null: its rows read everything.
  // Errors: PolicyError when it selects what is not resident.
  void begin(Selector* selector, const View& view, const LayerScores& scores);

  [[nodiscard]] bool selected() const { return selector_ != nullptr; }
  // Every row has a mask of its own.
  [[nodiscard]] bool by_row() const { return selector_ != nullptr && selector_->by_row(); }
  // The query head reads what the full cache would hold.
  [[nodiscard]] bool everything(int query_head) const;
  // What was chosen for the pass, ascending; null: all that is resident.
  [[nodiscard]] const std::vector<TokenIndex>* chosen(int query_head) const;
  // Keys that the rows of the pass read [padded tokens]. REQUIRES: !by_row().
  [[nodiscard]] const float* mask(int query_head) const;
  // Keys that one row reads. A row of an earlier pass is looked at over today's entries.
  // REQUIRES: by_row(). `storage` holds the result.
  const float* row_mask(int query_head, RowIndex row, const View& view,
                        std::vector<float>& storage) const;

  // Rows with masks of their own have read what any query head of a stored head reads.
  //   read    [rows from `begin` on][tokens]
  void count_rows(int head, RowIndex begin, const std::vector<std::vector<char>>& read);
  // Entries that each row loads, summed over heads [tokens]; empty when no selector chooses them.
  [[nodiscard]] const std::vector<std::int64_t>& loaded() const { return loaded_; }

 private:
  void choose(const View& view);
  void count(const Pass& pass, const LayerScores& scores);
  // What the query heads of a stored head read together, ascending.
  template <class ListOf>
  [[nodiscard]] std::vector<TokenIndex> united(int head, ListOf list_of) const;
  // Where the reads of a row are kept; null where the row is not in the sample.
  [[nodiscard]] std::uint8_t* bits(int head, RowIndex row);

  const Policy& policy_;
  LayerShape shape_;
  const Residency& residency_;
  Ledger& ledger_;
  Selector* selector_ = nullptr;          // of this pass
  std::vector<Reads> reads_;              // [query_heads]
  std::vector<std::vector<float>> mask_;  // [query_heads]; empty until something is chosen
  std::vector<std::int64_t> loaded_;
};

}  // namespace kvspan
