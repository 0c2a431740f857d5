// SPDX-License-Identifier: Apache-2.0
// What policies of one replay need not do twice. As long as nothing has left a cache, and every row
// reads all of it, all policies see the same; so budgets of one ranking share its scores, and all
// share the sums of the columns.
#pragma once

#include <compare>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "sim/policy/policy.h"
#include "sim/replay/row_block.h"

namespace kvspan {

// p' summed over all rows so far; empty unless somebody needs it.
struct ColumnSums {
  std::vector<std::vector<double>> sums;  // [query_heads][padded tokens]
  std::vector<double> slack;              // [query_heads]
};

// True if the policy's rows read all that it holds, as it was born: what its rules see is decided
// by who has left, and nothing else.
[[nodiscard]] bool holds_plainly(const Policy& policy);

// The ranking whose scores a policy shares; empty: none.
[[nodiscard]] std::string shared_ranking(const Policy& policy);

[[nodiscard]] std::vector<std::string> shared_rankings(const std::vector<Policy>& policies);

// Scores of the decisions of one block of rows of one layer. May be called from several threads.
class SharedScores {
 public:
  // The rankings that several policies have.
  //   rankings  [policies] see shared_ranking()
  explicit SharedScores(const std::vector<std::string>& rankings);
  [[nodiscard]] bool shares(const std::string& ranking) const {
    return rankings_.count(ranking) > 0;
  }
  struct Key {
    std::string ranking;
    RowIndex begin = 0, end = 0;  // of the pass
    int how = 0;                  // of the rule: see how_it_looks()
    int head = 0;
    TokenIndex first = 0;  // of the entries, which are consecutive
    std::size_t count = 0;
    auto operator<=>(const Key&) const = default;
  };
  [[nodiscard]] std::int64_t rankings() const { return std::ssize(rankings_); }
  // Valid until clear(); null: nobody has scored them.
  [[nodiscard]] const KnownScores* find(const Key& key) const;
  void add(const Key& key, std::span<const double> values, double slack);
  // The same of what a role remembers of the rows before `end`.
  [[nodiscard]] std::shared_ptr<const void> state(const std::string& ranking, RowIndex end) const;
  void add_state(const std::string& ranking, RowIndex end,
                 const std::shared_ptr<const void>& state);
  // Somebody of this ranking has added something.
  [[nodiscard]] bool begun(const std::string& ranking) const;
  void clear();

 private:
  std::set<std::string> rankings_;
  mutable std::mutex mutex_;
  std::map<Key, KnownScores> known_;
  std::map<std::pair<std::string, RowIndex>, std::shared_ptr<const void>> states_;
};

// Which rows and keys a rule looks at, as a number.
[[nodiscard]] int how_it_looks(const Rule& rule);

// The column sums of a cache that nothing has left, of one layer of a qkv trace.
class SharedColumns {
 public:
  // REQUIRES: blocks come in order, and hold all of their rows.
  void add(const RowBlock& block, const LayerShape& shape);
  [[nodiscard]] const ColumnSums& columns() const { return columns_; }
  [[nodiscard]] bool used() const { return !columns_.sums.empty(); }
  void clear() { columns_ = {}; }

 private:
  ColumnSums columns_;
};

// Of one layer.
struct SharedWork {
  explicit SharedWork(const std::vector<std::string>& rankings) : scores(rankings) {}
  SharedScores scores;
  SharedColumns columns;
};

}  // namespace kvspan
