// SPDX-License-Identifier: Apache-2.0
// RetroAttention: Quest's pages S_u for row u; what the next window-1 rows load is attended by the
// past rows too, and their outputs are merged by their softmax normalisers. In the end row u has
// attended to the union of S_u ... S_{u+window-1}, up to its own token; it loaded S_u only.
// Not in a trace: the past tokens' new outputs pass through the rest of the layer, and the keys and
// values of higher layers are rewritten by them. What is measured is attention with the logged
// ones.
// Source: Choi et al., arXiv 2508.09001 (abstract; details from a summary and the public reviews).
// Page size and full layers are not stated in what was read: Quest's. One choice per KV head
// follows from the published traffic term; per=query is Quest's own. A share is of the prompt, as
// everywhere; the paper's 15 % is of all tokens so far.
#include <algorithm>
#include <deque>

#include <fmt/format.h>

#include "sim/policies/shared/pages.h"

namespace kvspan::policies {
namespace {

class RetroPages final : public Selector {
 public:
  RetroPages(const PageRule& rule, RowIndex window, const LayerShape& shape)
      : chooser_(rule, shape), window_(window), tokens_(rule.tokens) {}
  Needs needs() const override { return {.q = true, .k = true}; }

  void select(const View& view, std::span<Reads> reads) override {
    if (!generates(view.pass())) return;
    const RowIndex row = view.pass().begin;
    for (; !chosen_.empty() && first_ < row; ++first_) chosen_.pop_front();
    if (chosen_.empty()) first_ = row;
    const RowIndex end = std::min(row + window_, tokens_);
    while (first_ + static_cast<RowIndex>(chosen_.size()) < end)
      chosen_.push_back(chooser_.choose(view, first_ + static_cast<RowIndex>(chosen_.size())));
    for (std::size_t q = 0; q < reads.size(); ++q) {
      if (chosen_.front()[q].empty()) continue;
      reads[q].loaded = chooser_.entries(view, static_cast<int>(q), chosen_.front()[q], row);
      std::vector<std::int32_t> pages;
      bool everything = false;
      for (const auto& later : chosen_) {
        everything = everything || later[q].empty();
        pages.insert(pages.end(), later[q].begin(), later[q].end());
      }
      if (everything) continue;
      std::sort(pages.begin(), pages.end());
      pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
      reads[q].attended = chooser_.entries(view, static_cast<int>(q), pages, row);
    }
  }

 private:
  PageChooser chooser_;
  RowIndex window_;
  RowIndex tokens_;
  RowIndex first_ = 0;                                         // the row of chosen_.front()
  std::deque<std::vector<std::vector<std::int32_t>>> chosen_;  // [rows][query_heads] pages
};

}  // namespace

PolicyEntry retroattention() {
  PolicyEntry entry;
  entry.name = "retroattention";
  entry.kind = MethodKind::selection;
  entry.summary = "Quest's pages, and past rows also attend to what the next rows load";
  entry.source = "Choi et al. 2025, arXiv 2508.09001";
  entry.evidence = "secondary";
  entry.differs =
      "page size and dense layers are not stated: Quest's 16 and 2; rewritten keys and "
      "values are not in a trace";
  entry.needs = "q and k";
  entry.parameters = page_parameters("15%", {"kv", "query"});
  entry.parameters.insert(entry.parameters.begin() + 1,
                          {.name = "window",
                           .fallback = "2",
                           .unit = "rows",
                           .help = "rows whose pages a row attends to, its own first",
                           .range = {1, 1024}});
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const PageRule rule = page_rule(arguments, geometry);
    const RowIndex window = arguments.count("window");
    Recipe recipe;
    recipe.selector = own(SelectorFactory([rule, window](const LayerShape& shape) {
      return std::make_unique<RetroPages>(rule, window, shape);
    }));
    // Beside Quest's bounds: outputs and fp32 normalisers of the last window - 1 rows, and one byte
    // per page and KV head that says when it was last loaded.
    const std::int64_t layers = geometry.layers();
    const std::int64_t outputs =
        (window - 1) * layers * geometry.query_heads * (geometry.v_dim * geometry.kv_bytes + 4);
    recipe.charge.during = [bounds = page_bytes(rule, geometry), page = rule.page, outputs,
                            flags = layers * geometry.kv_heads](RowIndex row) {
      return bounds(row) + outputs + (row + page) / page * flags;
    };
    recipe.knob = budget_knob(geometry);
    if (window > 1) {
      recipe.notes.push_back(fmt::format(
          "fidelity of a generated row is taken {} row{} later, with the logged keys and "
          "values (rewritten ones are not in a trace)",
          window - 1, window == 2 ? "" : "s"));
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
