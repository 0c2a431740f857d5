// SPDX-License-Identifier: Apache-2.0
// SnapKV: once, after the prompt: keep what its last `window` rows vote for, and the window itself.
// Votes are softmax probabilities over the resident keys summed over the window's rows, reduced
// over the query heads of the group, pooled along the candidates. Generated entries are appended.
// Source: Li et al., arXiv 2404.14469; code FasterDecoding/SnapKV (LongBench settings: window 32,
// kernel 7, max). The authors' code keeps one set per *query* head: group=none. preset=prulong: as
// a baseline of arXiv 2506.17121 (shared/prulong_preset.h).
#include "sim/policies/shared/prulong_preset.h"

namespace kvspan::policies {

PolicyEntry snapkv() {
  PolicyEntry entry;
  entry.name = "snapkv";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps what the prompt's last rows attend to, once, after the prompt";
  entry.source = "Li et al. 2024, arXiv 2404.14469";
  entry.evidence = "code read";
  entry.differs =
      "the authors' code keeps one set per query head (group=none); kvpress averages the "
      "group and pools by average (pool=avg,order=pool_then_group,window=64,kernel=5); as a "
      "baseline of arXiv 2506.17121 it is run with other settings again (preset=prulong)";
  entry.needs = "q and k, or probabilities of the last `window` prompt rows";
  entry.parameters = votes_parameters(32, 7);
  entry.parameters.insert(entry.parameters.begin(), budget_parameter());
  entry.parameters.push_back(preset_parameter());
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    apply_preset(arguments);
    Recipe recipe = budgeted(arguments, geometry, own(votes_scoring(arguments)));
    recipe.protect = own(protect_recent(arguments.count("window")));
    finish_preset(arguments, geometry, recipe);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
