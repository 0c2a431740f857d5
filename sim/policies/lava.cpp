// SPDX-License-Identifier: Apache-2.0
// LAVa: layers share one budget by the entropy of their scores, and heads share what their layer
// gets by the scores themselves.
//   score = max over the group of maxpool(mean over the window's rows of p') x max ||v||_1, the
//           largest L1 norm of the head's values before the window
//   a layer's part of (B - window) x layers: entropy of its scores of all heads, as shares of their
//           sum, over ln of their number; rounded down to b
//   a head keeps round(c (1 - alpha) + f) + window, c being its candidates among the best H b of
//           the layer; f = int(alpha B) (floor=code: a slip, a misspelt name leaves the first value
//           in place whatever the layer gets), or int(alpha b) (floor=layer: as was meant)
// alpha=0 is the paper's rule. A layer whose part exceeds its candidates keeps everything; decode
// appends.
// Source: Shen et al., arXiv 2509.09754; code MGDDestiny/Lava (window 32, kernel 7, max; alpha 0.2
// in its scripts). There layers are cut again as others arrive, which ends with these entries,
// since parts only shrink; memory between is total + one layer then, here all layers attend first.
// Heads of uneven length are stored one after the other, with 4 bytes of length a head.
#include "sim/policies/lava_rule.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/one_list.h"

namespace kvspan::policies {

PolicyEntry lava() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "lava";
  entry.kind = MethodKind::head_budget;
  entry.summary =
      "layers share a budget by the entropy of value-weighted votes, heads by the votes";
  entry.source = "Shen et al. 2025, arXiv 2509.09754; code MGDDestiny/Lava";
  entry.evidence = "code read";
  entry.differs =
      "the code's floor is alpha x B whatever a layer gets, by a misspelt name (floor=code); it "
      "cuts layers again as others arrive, here all attend before any is cut";
  entry.needs = "v, and q and k or probabilities of the last `window` prompt rows";
  entry.parameters = {budget_parameter("20%", "entries kept per layer and KV head, on average"),
                      {.name = "window",
                       .fallback = "32",
                       .unit = "rows",
                       .help = "observation window, inside the budget",
                       .range = {1, 1e6}},
                      {.name = "kernel",
                       .fallback = "7",
                       .unit = "entries",
                       .help = "max pooling, odd",
                       .range = {1, 1e6}},
                      {.name = "alpha",
                       .kind = Kind::real,
                       .fallback = "0.2",
                       .help = "share of the budget that every head is sure of; 0: the paper's",
                       .range = {0, 1}},
                      {.name = "floor",
                       .kind = Kind::word,
                       .fallback = "code",
                       .help = "alpha is of the whole budget, as the code runs, or of the layer's",
                       .choices = {"code", "layer"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const RowIndex window = arguments.count("window");
    Scoring scoring;
    scoring.make = [window, kernel = odd_count(arguments, "kernel")](const LayerShape&) {
      return std::make_unique<ValueVotes>(window, kernel);
    };
    scoring.window = window;
    scoring.by_place = true;
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    const bool even = geometry.trace == nullptr;
    recipe.shape = own(std::make_shared<EntropyShares>(EntropyShares::Settings{
        window, arguments.real("alpha"), arguments.is("floor", "layer"), even}));
    recipe.protect = own(protect_recent(window));
    if (even) {
      recipe.notes.emplace_back(
          "the prompt decides how layers and heads share the budget; evenly here, which gives its "
          "sum up to half an entry a head");
    }
    recipe.charge.once = 4LL * geometry.layers() * geometry.kv_heads;
    charge_shown_scores(recipe, geometry, geometry.evict_point - window);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
