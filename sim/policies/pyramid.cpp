// SPDX-License-Identifier: Apache-2.0
// PyramidKV's layer budgets alone, for another policy's scores: see pyramidkv. pyramid+adakv is
// Ada-PyramidKV (FFY0/AdaKV, pyram_mode): AdaKV's heads share out the layer's budget; there the
// line over the layers is kept for budgets above half of the prompt, too, and the window is
// adakv's.
#include "sim/policies/shared/pyramid.h"

namespace kvspan::policies {

PolicyEntry pyramid() {
  PolicyEntry entry;
  entry.name = "pyramid";
  entry.kind = MethodKind::budget_shape;
  entry.summary = "PyramidKV's layer budgets alone, for another policy's scores";
  entry.source = "Cai et al. 2024, arXiv 2406.02069";
  entry.evidence = "code read";
  entry.needs = "what the other policy needs";
  entry.alone = "it is a budget shape; combine it, as in pyramid+snapkv(budget=512)";
  entry.parameters = pyramid_parameters();
  entry.parameters.push_back({.name = "window",
                              .fallback = "auto",
                              .unit = "tokens",
                              .help = "reserved in every layer; auto: 8, with adakv its window",
                              .range = {0, 1e6}});
  entry.make = [](Arguments& arguments, const Geometry&) {
    Recipe recipe;
    const bool given = arguments.has("window");
    const TokenCount window = given ? arguments.count("window") : 8;
    recipe.layers = pyramid_layers(arguments, {window, given}, std::nullopt);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
