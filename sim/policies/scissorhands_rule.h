// SPDX-License-Identifier: Apache-2.0
// Votes of recent rows, low ones (the paper) or high ones (the released evaluation code).
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "sim/policies/shared/groups.h"
#include "sim/policies/shared/whole_trace.h"

namespace kvspan::policies {

// Votes of the last `window` rows, kept as the rows gave them: rows leave the sums when they are
// past the window. Rows that no decision can look back at are not kept.
class RecentVotes : public Scorer {
 public:
  RecentVotes(RowIndex window, int heads) : window_(window), sums_(index(heads)) {}
  Needs needs() const override { return {.observe = Observe::always}; }
  void observe(const View& view, RowIndex begin, RowIndex end) override;

 protected:
  // One vote, or none, for each entry that a row of one query head reads; returns how many entries
  // lie too close to the line.
  struct Attended {
    int query_head = 0;
    RowIndex row = 0;
    std::span<const double> p;
    double slack = 0;
  };
  virtual std::int64_t vote(const Attended& attended, std::span<std::uint8_t> votes) = 0;

  // Sums over the window that ends with this pass; returns the cells in doubt.
  double sums(const View& view, int head, std::span<const TokenIndex> entries,
              std::span<double> out);

 private:
  struct Row {
    struct Votes {
      std::vector<TokenIndex> entries;  // that the row reads; empty: 0, 1, 2, ...
      std::vector<std::uint8_t> count;  // of these, at most the group's size
      std::int64_t doubts = 0;
    };
    RowIndex row = 0;
    std::vector<Votes> heads;
  };

  void add(const View& view, RowIndex row);
  void forget();
  RowIndex window_;
  std::deque<Row> ring_;
  std::vector<std::vector<std::int32_t>> sums_;  // [heads][tokens so far]
};

class LowVotes final : public RecentVotes {
 public:
  using RecentVotes::RecentVotes;
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 protected:
  std::int64_t vote(const Attended& attended, std::span<std::uint8_t> votes) override;
};

// A row's line is the value at index floor(.9 T) of its sorted full-cache probabilities over all T
// columns of the trace, those of later tokens being zero: fewer than T / 10 entries lie above it.
class HighVotes final : public RecentVotes {
 public:
  static constexpr RowIndex kRows = 100;
  static constexpr RowIndex kFrom = 100;  // rows before it read everything
  HighVotes(const LayerShape& shape, const Trace* trace);
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override;

 protected:
  std::int64_t vote(const Attended& attended, std::span<std::uint8_t> votes) override;

 private:
  void draw_lines();
  LayerShape shape_;
  const Trace* trace_;
  bool acts_;
  std::vector<std::vector<double>> lines_;  // [query_heads][tokens], empty until the first vote
};

}  // namespace kvspan::policies
