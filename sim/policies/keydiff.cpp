// SPDX-License-Identifier: Apache-2.0
// KeyDiff: keeps the keys that differ most from the others: score = -cos(k, anchor), the anchor
// being the mean of the unit keys of all entries that compete.
// Source: Park et al., arXiv 2504.15364 (no code of the authors found); kvpress KeyDiffPress. The
// paper evicts after every block of the prompt, against one budget: block(keydiff,size=128), or
// chunked(keydiff(budget=512)).
#include <algorithm>
#include <cmath>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

class Distinct final : public Scorer {
 public:
  Needs needs() const override { return {.k = true}; }
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const LayerShape& shape = view.shape();
    const int kv_head = shape.kv_head(head);
    const auto dim = index(shape.k_dim);
    std::vector<std::vector<float>> keys;
    std::vector<double> norms;
    std::vector<double> anchor(dim, 0.0);
    for (const TokenIndex t : entries) {
      keys.push_back(view.key(kv_head, t));
      norms.push_back(std::sqrt(squared_norm(keys.back())));
      const double divisor = std::max(norms.back(), 1e-12);
      for (std::size_t d = 0; d < dim; ++d)
        anchor[d] += static_cast<double>(keys.back()[d]) / divisor;
    }
    double anchor_norm = 0;
    for (double& a : anchor) {
      a /= static_cast<double>(entries.size());
      anchor_norm += a * a;
    }
    anchor_norm = std::max(std::sqrt(anchor_norm), 1e-8);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      double dot = 0;
      for (std::size_t d = 0; d < dim; ++d) dot += anchor[d] * static_cast<double>(keys[i][d]);
      out[i] = -dot / (anchor_norm * std::max(norms[i], 1e-8));
    }
    round_sums(out);
    return 0;
  }
};

}  // namespace

PolicyEntry keydiff() {
  PolicyEntry entry;
  entry.name = "keydiff";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps the keys least like the mean direction of all keys, after the prompt";
  entry.source = "Park et al. 2025, arXiv 2504.15364; code NVIDIA/kvpress";
  entry.evidence = "code read (kvpress)";
  entry.needs = "k";
  entry.parameters = {budget_parameter()};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Scoring scoring;
    scoring.make = [](const LayerShape&) { return std::make_unique<Distinct>(); };
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    // One anchor, fp32, per layer and head.
    recipe.charge.once =
        std::int64_t{geometry.layers()} * geometry.kv_heads * std::int64_t{geometry.k_dim} * 4;
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
