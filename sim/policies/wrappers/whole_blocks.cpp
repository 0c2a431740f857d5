// SPDX-License-Identifier: Apache-2.0
// whole_blocks(policy): entries leave in whole blocks of `size` tokens, the only unit in which an
// engine with paged memory gets space back. The budget is rounded down to blocks (one at least);
// the block that is being filled stays on top of it, so that up to size - 1 entries more are held.
// What the policy protects is rounded up to blocks. The blocks with the largest sums of its scores
// stay. shared=true: one set of blocks for all heads of a layer, by the sums over heads, as engines
// with one block table a layer need it.
// whole_blocks(h2o(normalise=true,grace=128),size=32,shared=true) is the shape of the eviction of
// OpenVINO GenAI (areas at the start and of the newest in blocks, sums by age, layer by layer); its
// layout is --layout openvino.
// Source: OpenVINO GenAI, "KVCache Token Eviction Algorithm" (documentation); vLLM's paged memory
// (Kwon et al. 2023, arXiv 2309.06180) for the unit.
#include "sim/policies/shared/wrapping.h"

namespace kvspan::policies {
namespace {

class OverHeads final : public Scorer {
 public:
  explicit OverHeads(std::unique_ptr<Scorer> inner) : inner_(std::move(inner)) {}
  Needs needs() const override { return inner_->needs(); }
  void observe(const View& view, RowIndex begin, RowIndex end) override {
    inner_->observe(view, begin, end);
  }
  double score(const View& view, int /*head*/, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    std::vector<double> one(out.size());
    std::ranges::fill(out, 0.0);
    double slack = 0;
    for (int h = 0; h < view.shape().heads; ++h) {
      slack += inner_->score(view, h, entries, one);
      for (std::size_t i = 0; i < one.size(); ++i) out[i] += one[i];
    }
    round_sums(out);
    return slack;
  }

 private:
  std::unique_ptr<Scorer> inner_;
};

// Every head of a layer keeps the same blocks.
void share_among_heads(const Arguments& arguments, Recipe& inner) {
  if (inner.shape.is_own())
    refuse(arguments, inner,
           fmt::format("shared=true keeps one set for all heads of a layer, and {} gives every "
                       "head a number of its own",
                       inner.shape.owner));
  Scoring& scoring = inner.scorer.value;
  if (scoring.axis == Axis::layer) return;
  scoring.make = [make = scoring.make](const LayerShape& shape) {
    return std::make_unique<OverHeads>(make(shape));
  };
  scoring.axis = Axis::layer;
  scoring.sharing = Sharing::none;
}

}  // namespace

PolicyEntry whole_blocks() {
  PolicyEntry entry;
  entry.name = "whole_blocks";
  entry.kind = MethodKind::wrapper;
  entry.summary = "lets a policy's entries leave in whole blocks only, as paged memory frees them";
  entry.source = "OpenVINO GenAI, cache eviction; vLLM, Kwon et al. 2023, arXiv 2309.06180";
  entry.evidence = "documentation read";
  entry.differs =
      "OpenVINO keeps at least one evictable block beside its start and recent areas, and says the "
      "cache may exceed its limit by a block less one token, as here";
  entry.needs = "what the inner policy needs";
  entry.wrapper = true;
  entry.parameters = {
      {.name = "size", .fallback = "16", .unit = "tokens", .help = "of a block", .range = {1, 1e6}},
      {.name = "shared",
       .kind = Parameter::Kind::flag,
       .fallback = "false",
       .help = "one set of blocks for all heads of a layer"}};
  entry.wrap = [](Arguments& arguments, const Geometry& geometry, Recipe inner) {
    require_plain_pick(arguments, inner);
    if (!inner.size) refuse(arguments, inner, fmt::format("{} has no budget", inner.name));
    if (!inner.more_rules.empty())
      refuse(arguments, inner, fmt::format("{} ranks by more than one rule", inner.name));
    if (inner.scorer.value.order.by_score)
      refuse(arguments, inner, "its cache lies in the order of scores, not of tokens");
    inner.block_size = arguments.count("size");
    if (arguments.flag("shared")) share_among_heads(arguments, inner);
    const TokenCount tokens = budget_tokens(
        inner.size.value, geometry, geometry.shape(0, inner.scorer.value.per_query_head).heads,
        geometry.entry_bytes(), inner.name + ": budget");
    if (tokens < inner.block_size) {
      inner.notes.push_back(
          fmt::format("its budget of {} entries is less than a block of {}: it "
                      "holds one",
                      tokens, inner.block_size));
    }
    inner.terms = wrapped_terms(inner, arguments);
    return inner;
  };
  return entry;
}

}  // namespace kvspan::policies
