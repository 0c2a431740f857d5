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
// With write_gate, as in WG-KV: a page is `page` admitted entries of a head in a row, older than
// the local window. Local entries are always read and count in the budget, then the page that is
// being filled, then the best full ones. There, auto means per=kv, skip=0, least=0.
#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

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

// Pages of what was admitted, behind the local window of a write gate.
class AdmittedPages final : public Selector {
 public:
  AdmittedPages(const PageRule& rule, TokenCount local, const LayerShape& shape)
      : rule_(rule), local_(local), shape_(shape) {
    for (int h = 0; h < shape.heads; ++h)
      heads_.push_back({{}, PageBounds(shape.k_dim, rule.page, rule.tokens)});
  }
  Needs needs() const override { return {.q = true, .k = true}; }

  void select(const View& view, std::span<Reads> reads) override {
    if (!generates(view.pass()) || shape_.model_layer < rule_.skip) return;
    const RowIndex row = view.pass().begin;
    for (int head = 0; head < shape_.heads; ++head) {
      const auto held = view.resident(head);
      const auto local = std::lower_bound(held.begin(), held.end(), row - local_ + 1);
      const std::span<const TokenIndex> admitted(held.begin(), local);
      const std::size_t places = places_beside(static_cast<TokenCount>(held.end() - local));
      const PageBounds& bounds = bounds_of(view, head, admitted);
      if (places * index(rule_.page) >= admitted.size()) continue;
      const int step = rule_.per_kv_head ? shape_.group() : 1;
      for (int q = head * shape_.group(); q < (head + 1) * shape_.group(); q += step) {
        std::vector<TokenIndex> chosen;
        for (const std::int32_t p : best(view, bounds, {q, q + step}, admitted.size(), places)) {
          const auto page = admitted.subspan(index(p) * index(rule_.page));
          chosen.insert(chosen.end(), page.begin(),
                        page.begin() + std::min<std::ptrdiff_t>(rule_.page, std::ssize(page)));
        }
        chosen.insert(chosen.end(), local, held.end());
        for (int reader = q; reader < q + step; ++reader) reads[index(reader)].attended = chosen;
      }
    }
  }

 private:
  struct Head {
    std::vector<TokenIndex> written;  // in order
    PageBounds bounds;
  };

  // Pages that a row reads beside its local entries.
  [[nodiscard]] std::size_t places_beside(TokenCount local) const {
    const TokenCount tokens = std::max<TokenCount>(rule_.budget, rule_.least * rule_.page) - local;
    return index(std::max<TokenCount>(0, tokens + rule_.page - 1) / rule_.page);
  }

  const PageBounds& bounds_of(const View& view, int head, std::span<const TokenIndex> admitted) {
    Head& of = heads_[index(head)];
    const bool grown = of.written.size() <= admitted.size() &&
                       std::equal(of.written.begin(), of.written.end(), admitted.begin());
    if (!grown) of = {{}, PageBounds(shape_.k_dim, rule_.page, rule_.tokens)};  // packed anew
    for (std::size_t i = of.written.size(); i < admitted.size(); ++i) {
      of.bounds.add(static_cast<RowIndex>(i), view.key(shape_.kv_head(head), admitted[i]));
      of.written.push_back(admitted[i]);
    }
    return of.bounds;
  }

  // Pages that query heads [first, second) read, ascending.
  [[nodiscard]] std::vector<std::int32_t> best(const View& view, const PageBounds& bounds,
                                               std::pair<int, int> query_heads,
                                               std::size_t admitted, std::size_t places) const {
    const std::size_t page = index(rule_.page);
    std::vector<float> highest((admitted + page - 1) / page,
                               -std::numeric_limits<float>::infinity());
    std::vector<float> scores(highest.size());
    for (int q = query_heads.first; q < query_heads.second; ++q) {
      bounds.score(view.query(q, view.pass().begin), scores);
      for (std::size_t p = 0; p < scores.size(); ++p) highest[p] = std::max(highest[p], scores[p]);
    }
    const bool open = rule_.last_page && places > 0 && admitted % page != 0;
    const std::size_t competing = highest.size() - (open ? 1 : 0);
    std::vector<std::int32_t> out =
        best_of(std::span(highest).first(competing), places - (open ? 1 : 0));
    if (open) out.push_back(static_cast<std::int32_t>(competing));
    return out;
  }

  PageRule rule_;
  TokenCount local_;
  LayerShape shape_;
  std::vector<Head> heads_;
};

// Bounds of every page that is held, the local ones included: by entry, as nobody knows how many
// will be admitted.
std::int64_t bound_bytes_of_entry(const PageRule& rule, const Geometry& geometry) {
  return (2 * geometry.k_dim * geometry.kv_bytes + rule.page - 1) / rule.page;
}

// What is left to us is chosen as in Quest's own code, and behind a write gate as in WG-KV's.
std::vector<Parameter> parameters() {
  std::vector<Parameter> out = page_parameters("20%", {"query", "kv"});
  for (Parameter& p : out) {
    const bool of_both = p.name == "skip" || p.name == "least" || p.name == "per";
    if (!of_both) continue;
    p.help += "; auto: " + p.fallback + ", with write_gate " + (p.name == "per" ? "kv" : "0");
    p.fallback = "auto";
  }
  return out;
}

PageRule behind_gate(PageRule rule, const Arguments& arguments) {
  if (!arguments.has("skip")) rule.skip = 0;
  if (!arguments.has("least")) rule.least = 0;
  if (!arguments.has("per")) rule.per_kv_head = true;
  return rule;
}

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
      "evaluation code's alone; both select per query head, WG-KV's port per KV head (its choice "
      "with write_gate)";
  entry.needs = "q and k";
  entry.parameters = parameters();
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const PageRule rule = page_rule(arguments, geometry);
    Recipe recipe;
    recipe.selector = own(SelectorFactory(
        [rule](const LayerShape& shape) { return std::make_unique<TopPages>(rule, shape); }));
    recipe.paged = [rule, gated = behind_gate(rule, arguments), all = recipe.selector.value,
                    geometry](std::optional<TokenCount> local) -> Recipe::Paged {
      if (!local) return {all, {0, 0, page_bytes(rule, geometry)}};
      return {[gated, local](const LayerShape& shape) {
                return std::make_unique<AdmittedPages>(gated, *local, shape);
              },
              {bound_bytes_of_entry(gated, geometry)}};
    };
    recipe.knob = budget_knob(geometry);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
