// SPDX-License-Identifier: Apache-2.0
// Shared by policies that choose what a row reads: best-of lists, and Quest's pages.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "sim/policies/shared/budgets.h"
#include "sim/policies/shared/groups.h"

namespace kvspan::policies {

// True for a pass whose rows choose what they read: one generated token. Rows of the prompt after
// --evict-at read everything.
[[nodiscard]] bool generates(const Pass& pass);

// The `count` best of scores [n], ascending by index; ties to the lower index. REQUIRES: no NaN.
[[nodiscard]] std::vector<std::int32_t> best_of(std::span<const float> scores, std::size_t count);

// Element-wise minimum and maximum of the keys of each page of one KV head. A page is a block of
// places, and a key that was written stays in the bounds of its page after its entry has died, as
// in a real system: bounds cannot be un-merged.
class PageBounds {
 public:
  PageBounds(int dim, int page, std::int64_t places);
  // Where places are token indices: the keys of all tokens before `end`.
  void extend(const View& view, int kv_head, TokenIndex end);
  // Writes a key to a place.
  void add(RowIndex place, std::span<const float> key);
  // out[p] = sum_i max(q_i min_i, q_i max_i) >= q . k of every key in page p.  out [pages], from
  // page 0
  void score(std::span<const float> q, std::span<float> out) const;

 private:
  int dim_;
  TokenIndex page_;
  std::size_t pages_;
  TokenIndex end_ = 0;
  std::vector<float> low_, high_;  // [dim][pages]
};

// How Quest chooses pages; shared by what builds on it.
struct PageRule {
  int page = 16;          // tokens
  int skip = 2;           // the model's first layers, which read everything
  bool last_page = true;  // the newest page is always read, and counts
  TokenCount least = 3;   // pages
  bool per_kv_head = false;
  TokenCount budget = 0;                     // tokens a row reads
  std::int64_t tokens = 0;                   // of the trace
  [[nodiscard]] std::size_t count() const {  // pages a row reads
    return index(std::max<TokenCount>({least, budget / page, 1}));
  }
};
[[nodiscard]] std::vector<Parameter> page_parameters(const std::string& budget,
                                                     const std::vector<std::string>& per);
[[nodiscard]] PageRule page_rule(const Arguments& arguments, const Geometry& geometry);
// Bytes of the bounds of all stored layers and KV heads while `row` attends.
[[nodiscard]] std::function<std::int64_t(RowIndex)> page_bytes(const PageRule& rule,
                                                               const Geometry& geometry);

// The pages of one layer, and who reads which.
class PageChooser {
 public:
  PageChooser(const PageRule& rule, const LayerShape& shape);
  // Pages that each query head reads in `row`, ascending; an empty list: everything. Rows ascend.
  [[nodiscard]] std::vector<std::vector<std::int32_t>> choose(const View& view, RowIndex row);
  // Resident entries of the pages, up to the row; pages ascending.
  [[nodiscard]] std::vector<TokenIndex> entries(const View& view, int query_head,
                                                std::span<const std::int32_t> pages,
                                                RowIndex row) const;

 private:
  [[nodiscard]] std::vector<std::int32_t> living(const View& view, int head, RowIndex row) const;
  PageRule rule_;
  LayerShape shape_;
  std::vector<PageBounds> bounds_;  // [kv_heads]
};

}  // namespace kvspan::policies
