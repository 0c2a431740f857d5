// SPDX-License-Identifier: Apache-2.0
// Observed attention: keeps what the prompt's rows attended to on average: the sum of a key's
// column of attention, divided by the number of rows that could see it, mean over the group. Once,
// after the prompt. Nothing is protected; the last token is judged by its own row alone.
// Source: kvpress ObservedAttentionPress, after H2O (arXiv 2306.14048).
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

class Observed final : public Scorer {
 public:
  Needs needs() const override { return {.column_sums = true}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const double slack = reduce_group(
        view.shape(), head, Group::mean, out,
        [&](int q, std::span<double> sums) { return view.column_sum(q, entries, sums); });
    for (std::size_t i = 0; i < entries.size(); ++i)
      out[i] /= static_cast<double>(view.pass().end - entries[i]);
    round_sums(out);
    return slack;
  }
};

}  // namespace

PolicyEntry observed_attention() {
  PolicyEntry entry;
  entry.name = "observed_attention";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps what all rows of the prompt attended to on average, after the prompt";
  entry.source = "NVIDIA/kvpress, ObservedAttentionPress; after H2O, arXiv 2306.14048";
  entry.evidence = "code read";
  entry.needs = "q and k, or probabilities of all prompt rows (or column_mass of the prompt)";
  entry.parameters = {budget_parameter()};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Scoring scoring;
    scoring.make = [](const LayerShape&) { return std::make_unique<Observed>(); };
    scoring.sharing = Sharing::always;
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    // One fp32 sum per prompt token so far of every layer and head, until the sums have been used.
    const std::int64_t heads = std::int64_t{geometry.layers()} * geometry.kv_heads;
    recipe.charge.during = [heads, prompt = geometry.evict_point](RowIndex row) {
      return row < prompt ? heads * (row + 1) * 4 : 0;
    };
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
