// SPDX-License-Identifier: Apache-2.0
// Non-causal attention: keeps what the queries of the same chunk attend to, earlier or later: the
// second half of compactor, alone; nothing is protected.
// Source: kvpress NonCausalAttnPress, after arXiv 2507.08143.
#include "sim/policies/compactor_rule.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

PolicyEntry noncausal() {
  PolicyEntry entry;
  entry.name = "noncausal";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps what a chunk's own queries attend to, earlier or later, after the prompt";
  entry.source = "Chari & Van Durme 2025, arXiv 2507.08143; code NVIDIA/kvpress";
  entry.evidence = "code read (kvpress)";
  entry.needs = "q, k and v";
  entry.parameters = {budget_parameter(),
                      {.name = "chunk",
                       .fallback = "256",
                       .unit = "entries",
                       .help = "that attend to each other",
                       .range = {1, 1e6}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    CompactorSettings settings;
    settings.chunk = arguments.count("chunk");
    Scoring scoring;
    scoring.make = [settings](const LayerShape&) {
      return std::make_unique<CompactorScores>(settings);
    };
    scoring.by_place = true;
    return budgeted(arguments, geometry, own(scoring));
  };
  return entry;
}

}  // namespace kvspan::policies
