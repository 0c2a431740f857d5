// SPDX-License-Identifier: Apache-2.0
// Compactor: blends how far a key lies from the others with who would attend to it if rows could
// see ahead. Of all entries but the first 8 and the last 4, which stay:
//   leverage   x (X'X)^-1 x of the keys before rotation, centred; X is X times a seeded Gaussian
//              sketch of `sketch` columns (0: the keys themselves), and .01 is added to the
//              diagonal
//   attention  in chunks of `chunk` entries, each by the queries of its own tokens, without a mask
//              and without the scale: sums over these queries, mean of the group, times ||v||,
//              average pooling 3
// both less their mean over their deviation, over all heads of the layer; score = attention +
// blending x leverage.
// Source: Chari & Van Durme, arXiv 2507.08143; kvpress CompactorPress, LeverageScorePress and
// NonCausalAttnPress by the first author, whose defaults these are (blending: the compression
// ratio; the last chunk is filled up with keys of logit 0, and with queries that read all alike).
// There the sketch is unseeded. leverage and noncausal are the halves.
#include "sim/policies/compactor_rule.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

PolicyEntry compactor() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "compactor";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps outlying keys, and keys that a chunk's own queries attend to, mask or no";
  entry.source = "Chari & Van Durme 2025, arXiv 2507.08143; code NVIDIA/kvpress";
  entry.evidence = "code read (kvpress)";
  entry.differs =
      "the sketch of kvpress is unseeded; where the budget is smaller than the 12 entries that "
      "stay, "
      "the newest of them stay here";
  entry.needs = "q, k and v; the rope_* fields where keys are rotated";
  entry.parameters = {budget_parameter(),
                      {.name = "chunk",
                       .fallback = "256",
                       .unit = "entries",
                       .help = "that attend to each other",
                       .range = {1, 1e6}},
                      {.name = "sketch",
                       .fallback = "48",
                       .unit = "columns",
                       .help = "of the random sketch of keys; 0: the keys themselves",
                       .range = {0, 4096}},
                      {.name = "blending",
                       .kind = Kind::real,
                       .fallback = "auto",
                       .help = "weight of the leverage; auto: 1 - budget / prompt",
                       .range = {0, 1e6}},
                      {.name = "sinks", .fallback = "8", .unit = "tokens", .help = "first, kept"},
                      {.name = "recent", .fallback = "4", .unit = "tokens", .help = "newest, kept"},
                      seed_parameter("of the sketch")};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    CompactorSettings settings;
    settings.sinks = arguments.count("sinks");
    settings.recent = arguments.count("recent");
    settings.chunk = arguments.count("chunk");
    settings.sketch = static_cast<int>(arguments.count("sketch"));
    settings.seed = seed_of(arguments, geometry);
    const Amount budget = arguments.amount("budget");
    if (arguments.has("blending")) {
      settings.blending = arguments.real("blending");
    } else if (budget.kind == Amount::Kind::share) {
      settings.blending = budget.one_minus_share();
    } else {
      settings.blending =
          std::max(0.0, 1 - static_cast<double>(entries_of(arguments, "budget", geometry)) /
                                static_cast<double>(geometry.evict_point));
    }
    Scoring scoring;
    scoring.make = [settings](const LayerShape&) {
      return std::make_unique<CompactorScores>(settings);
    };
    scoring.by_place = true;
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    recipe.protect = own(ProtectRule([settings](TokenCount) {
      return Protect{settings.sinks, settings.recent};
    }));
    recipe.knob->monotone = arguments.has("blending");
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
