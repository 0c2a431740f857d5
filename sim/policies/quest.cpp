// SPDX-License-Identifier: Apache-2.0
// Quest: nothing is evicted; a generated token reads the pages whose element-wise key bounds
// promise the largest q . k, chosen per query head. The prompt attends in full, and so do the first
// `skip` layers. It saves traffic, never capacity: the bounds come on top of the full cache.
//   page score = sum_i max(q_i min_i, q_i max_i) >= q . k of every key in the page
// Source: Tang et al., arXiv 2406.10774; code mit-han-lab/Quest. Its kernels always read the newest
// page (last_page=true, the default); its evaluation code (evaluation/quest_attention.py) does not,
// and reads max(3, budget / page) pages, which both variants do here. per=kv is the port in
// EMCLab-Sinica/WG-KV: one choice per KV head by the largest score of the group.
// With a policy that evicts, pages stay blocks of token indices: dead pages are skipped, and a dead
// entry stays in the bounds of its page.
#include "sim/policies/shared/pages.h"

namespace kvspan::policies {
namespace {

class TopPages final : public Selector {
 public:
  TopPages(const PageRule& rule, const LayerShape& shape) : chooser_(rule, shape) {}
  Needs needs() const override { return {.q = true, .k = true}; }
  void select(const View& view, std::span<Reads> reads) override {
    if (!generates(view.pass())) return;
    const RowIndex row = view.pass().begin;
    const auto chosen = chooser_.choose(view, row);
    for (std::size_t q = 0; q < chosen.size(); ++q) {
      if (!chosen[q].empty())
        reads[q].attended = chooser_.entries(view, static_cast<int>(q), chosen[q], row);
    }
  }

 private:
  PageChooser chooser_;
};

}  // namespace

PolicyEntry quest() {
  PolicyEntry entry;
  entry.name = "quest";
  entry.kind = MethodKind::selection;
  entry.summary = "reads the pages whose key bounds promise the largest scores; evicts nothing";
  entry.source = "Tang et al. 2024, arXiv 2406.10774";
  entry.evidence = "code read";
  entry.differs =
      "the kernel always reads the last page (last_page=true); at least 3 pages (least=) is the "
      "evaluation code's alone; both select per query head, WG-KV's port per KV head (per=kv)";
  entry.needs = "q and k";
  entry.parameters = page_parameters("20%", {"query", "kv"});
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const PageRule rule = page_rule(arguments, geometry);
    Recipe recipe;
    recipe.selector = own(SelectorFactory(
        [rule](const LayerShape& shape) { return std::make_unique<TopPages>(rule, shape); }));
    recipe.charge.during = page_bytes(rule, geometry);
    recipe.knob = budget_knob(geometry);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
