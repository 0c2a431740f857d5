// SPDX-License-Identifier: Apache-2.0
// KeyDiff: keeps the keys that differ most from the others: score = -cos(k, anchor), the anchor
// being the mean of the unit keys of all entries that compete.
// Source: Park et al., arXiv 2504.15364 (no code of the authors found); kvpress KeyDiffPress. The
// paper evicts after every block of the prompt, against one budget: block(keydiff,size=128), or
// chunked(keydiff(budget=512)).
#include <algorithm>
#include <cmath>

#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/kernels.h"

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
    const std::vector<float> keys = vectors_of(view, Vectors::keys, kv_head, entries);
    std::vector<double> norms(entries.size());
    kernels::squared_norms(keys.data(), std::ssize(entries), shape.k_dim, shape.k_dim,
                           norms.data());
    std::vector<double> anchor(dim, 0.0);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      norms[i] = std::sqrt(norms[i]);
      const double divisor = std::max(norms[i], 1e-12);
      const float* const key = keys.data() + i * dim;
      for (std::size_t d = 0; d < dim; ++d) anchor[d] += static_cast<double>(key[d]) / divisor;
    }
    double anchor_norm = 0;
    for (double& a : anchor) {
      a /= static_cast<double>(entries.size());
      anchor_norm += a * a;
    }
    anchor_norm = std::max(std::sqrt(anchor_norm), 1e-8);
    kernels::dots(keys.data(), std::ssize(entries), shape.k_dim, anchor.data(), out.data());
    for (std::size_t i = 0; i < entries.size(); ++i)
      out[i] = -out[i] / (anchor_norm * std::max(norms[i], 1e-8));
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
    scoring.sharing = Sharing::always;
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    // One anchor, fp32, per layer and head.
    recipe.charge.once =
        std::int64_t{geometry.layers()} * geometry.kv_heads * std::int64_t{geometry.k_dim} * 4;
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
