// SPDX-License-Identifier: Apache-2.0
// PyramidKV: SnapKV's votes under budgets that fall linearly from the first layer to the last.
// Source: Cai et al., arXiv 2406.02069; code Zefan-Cai/KVCache-Factory. rounding=code reproduces
// the code's integer step, which overspends small budgets by 4 to 12 %; rounding=exact keeps the
// total; rounding=kvpress is PyramidKVPress of NVIDIA/kvpress 0.5.5, whose layer counts include
// the window and which falls back to equal budgets when the last layer would get less than the
// window. preset=prulong: as a baseline of arXiv 2506.17121 (shared/prulong_preset.h).
#include "sim/policies/shared/prulong_preset.h"
#include "sim/policies/shared/pyramid.h"

namespace kvspan::policies {

PolicyEntry pyramidkv() {
  PolicyEntry entry;
  entry.name = "pyramidkv";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "SnapKV's votes; lower layers keep more, higher layers less";
  entry.source = "Cai et al. 2024, arXiv 2406.02069";
  entry.evidence = "code read";
  entry.differs =
      "the code's integer step overspends small budgets (rounding=code), the paper's line "
      "does not (exact), kvpress counts the window inside (kvpress); arXiv 2506.17121 runs it "
      "with other settings (preset=prulong)";
  entry.needs = "q and k, or probabilities of the last `window` prompt rows";
  entry.parameters = votes_parameters(8, 7);
  entry.parameters.insert(entry.parameters.begin(), budget_parameter());
  for (const Parameter& p : pyramid_parameters()) entry.parameters.push_back(p);
  entry.parameters.push_back(preset_parameter());
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    apply_preset(arguments);
    const TokenCount window = arguments.count("window");
    Recipe recipe = budgeted(arguments, geometry, by_default(votes_scoring(arguments)));
    recipe.layers = pyramid_layers(arguments, {window, false}, arguments.amount("budget"));
    recipe.protect = by_default(protect_recent(window));
    finish_preset(arguments, geometry, recipe);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
