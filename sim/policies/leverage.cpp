// SPDX-License-Identifier: Apache-2.0
// Leverage: keeps the keys that lie farthest from the others, by statistical leverage before
// rotation: the first half of compactor, alone; nothing is protected.
// Source: kvpress LeverageScorePress, after arXiv 2507.08143; its sketch is unseeded.
#include "sim/policies/compactor_rule.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

PolicyEntry leverage() {
  PolicyEntry entry;
  entry.name = "leverage";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps keys of high statistical leverage before rotation, after the prompt";
  entry.source = "Chari & Van Durme 2025, arXiv 2507.08143; code NVIDIA/kvpress";
  entry.evidence = "code read (kvpress)";
  entry.differs = "the sketch of kvpress is unseeded";
  entry.needs = "k; the rope_* fields where keys are rotated";
  entry.parameters = {budget_parameter(),
                      {.name = "sketch",
                       .fallback = "48",
                       .unit = "columns",
                       .help = "of the random sketch of keys; 0: the keys themselves",
                       .range = {0, 4096}},
                      seed_parameter("of the sketch")};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    CompactorSettings settings;
    settings.sketch = static_cast<int>(arguments.count("sketch"));
    settings.seed = seed_of(arguments, geometry);
    Scoring scoring;
    scoring.make = [settings](const LayerShape&) {
      return std::make_unique<CompactorScores>(settings);
    };
    return budgeted(arguments, geometry, own(scoring));
  };
  return entry;
}

}  // namespace kvspan::policies
