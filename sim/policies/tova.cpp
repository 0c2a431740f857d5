// SPDX-License-Identifier: Apache-2.0
// TOVA: the last row's attention, averaged over all query heads of the layer; one set for all
// heads; nothing is protected, not even the newest token. After the prompt and after every decode
// row.
// Source: Oren et al., arXiv 2401.06104; code schwartz-lab-NLP/TOVA.
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

class LastRow final : public Scorer {
 public:
  Needs needs() const override { return {.last_rows = 1}; }
  double score(const View& view, int /*head*/, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    LayerShape whole = view.shape();
    whole.heads = 1;  // one group: all query heads of the layer
    const double slack = reduce_group(
        whole, 0, Group::mean, out,
        [&](int q, std::span<double> votes) { return view.votes(q, 1, entries, votes); });
    round_sums(out);
    return slack;
  }
};

}  // namespace

PolicyEntry tova() {
  PolicyEntry entry;
  entry.name = "tova";
  entry.kind = MethodKind::eviction;
  entry.summary = "drops what the last row attends to least, one set per layer, in decode too";
  entry.source = "Oren et al. 2024, arXiv 2401.06104";
  entry.evidence = "code read";
  entry.needs = "q and k, or probabilities of the prompt's last row and of all decode rows";
  entry.parameters = {budget_parameter()};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Scoring scoring;
    scoring.make = [](const LayerShape&) { return std::make_unique<LastRow>(); };
    scoring.axis = Axis::layer;
    scoring.sharing = Sharing::always;
    scoring.evicts_in_decode = true;
    return budgeted(arguments, geometry, own(scoring), own(Schedule::from_evict_point()));
  };
  return entry;
}

}  // namespace kvspan::policies
