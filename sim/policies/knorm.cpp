// SPDX-License-Identifier: Apache-2.0
// Knorm: keeps the keys of the smallest norm, which tend to receive the most attention. The score,
// -||k||, is known when an entry is born, so that any schedule may use it.
// Source: Devoto et al., arXiv 2406.11430; code alessiodevoto/l2compress; kvpress KnormPress. The
// authors' code leaves the model's first two layers alone (skip=2, as do the chunked runs of arXiv
// 2506.17121); kvpress, and the default here, leave none.
#include <cmath>

#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

PolicyEntry knorm() {
  PolicyEntry entry;
  entry.name = "knorm";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps the keys of the smallest norm, once, after the prompt";
  entry.source = "Devoto et al. 2024, arXiv 2406.11430";
  entry.evidence = "code read";
  entry.differs = "the authors leave the first two layers alone (skip=2), kvpress does not";
  entry.needs = "k";
  entry.parameters = {budget_parameter(),
                      {.name = "skip",
                       .fallback = "0",
                       .unit = "layers",
                       .help = "first layers of the model that keep everything",
                       .range = {0, 1e6}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Scoring scoring;
    scoring.make = birth_scorer({.k = true}, [](const LayerShape& shape) -> BirthValues {
      return [group = shape.heads / shape.kv_heads](const View& view, int head, TokenIndex begin,
                                                    TokenIndex end, std::span<double> out) {
        for (TokenIndex t = begin; t < end; ++t)
          out[index(t - begin)] = -std::sqrt(squared_norm(view.key(head / group, t)));
        round_sums(out);
      };
    });
    scoring.at_birth = true;
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    recipe.full_layers = static_cast<int>(arguments.count("skip"));
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
