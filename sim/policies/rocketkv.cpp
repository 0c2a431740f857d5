// SPDX-License-Identifier: Apache-2.0
// RocketKV: two stages against one budget B of entries that a row may move. With c = N / B and r =
// min(.8, .2 + .06 log2 c), N with all that will be generated (m of it):
//   1. after the prompt SnapKV (pooling 63, sum of the group) to max(int(N / c^r), min(2 m, N)) - m
//      entries a head; generated entries are appended
//   2. a generated token reads B / 2 of what is held, one set per KV head. With C = (that + m) / B
//      left to save, a page is ceil(sqrt C) neighbours in the cache (1 if that is above C), and
//      int(d page / C) channels are compared, those with the largest mean |q|: a page promises sum
//      q k over them, with its largest k in the direction of the group's summed q; softmax over
//      entries with a temperature sqrt(d x share of |q| in these channels), mean of the group; the
//      best are read
// It saves capacity by the first stage, traffic by the second. Entries of a page tie: the lower
// one is read.
// Source: Behnam et al., arXiv 2502.14051; code NVlabs/RocketKV (inf_llm/attention/rocket.py,
// infllm_utils.py), which forms the bounds of pages from all keys for every row; bounds=stored
// charges them, the largest and smallest coordinates of each page, as a system would hold them. A
// budget of all N tokens reads everything.
#include "sim/policies/rocketkv_rule.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {

PolicyEntry rocketkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "rocketkv";
  entry.kind = MethodKind::selection;
  entry.summary =
      "evicts after the prompt, then reads the best of what is left by pages and channels";
  entry.source = "Behnam et al. 2025, arXiv 2502.14051; code NVlabs/RocketKV";
  entry.evidence = "code read";
  entry.differs =
      "the authors' program looks at all keys to form the bounds of pages, and saves no traffic; a "
      "system stores them (bounds=stored)";
  entry.needs = "q and k";
  entry.parameters = {
      budget_parameter("20%", "entries that a generated token may move, per KV head"),
      {.name = "window",
       .fallback = "32",
       .unit = "rows",
       .help = "observation window of the first stage",
       .range = {1, 1e6}},
      {.name = "kernel",
       .fallback = "63",
       .unit = "entries",
       .help = "max pooling of the first stage, odd",
       .range = {1, 1e6}},
      {.name = "r",
       .kind = Kind::real,
       .fallback = "auto",
       .help = "the first stage's part of the saving; auto: by the saving",
       .range = {0, 1}},
      {.name = "bounds",
       .kind = Kind::word,
       .fallback = "formed",
       .help = "of pages: formed for every row, as in the code, or stored",
       .choices = {"formed", "stored"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const RocketPlan plan = rocket_plan(geometry.tokens, geometry.tokens - geometry.evict_point,
                                        entries_of(arguments, "budget", geometry), geometry.k_dim,
                                        arguments.has("r") ? arguments.real("r") : -1);
    const RowIndex window = arguments.count("window");
    Recipe recipe;
    recipe.scorer = own(votes_scoring(
        {.window = window, .kernel = odd_count(arguments, "kernel"), .group = Group::sum}));
    recipe.size = own(Amount{Amount::Kind::tokens, plan.prompt, 0, ""});
    recipe.protect = own(protect_recent(window));
    recipe.selector = own(SelectorFactory(
        [plan](const LayerShape&) { return std::make_unique<PagesAndChannels>(plan); }));
    if (arguments.is("bounds", "stored"))
      recipe.charge.entry = (2 * geometry.k_dim * geometry.kv_bytes + plan.page - 1) / plan.page;
    recipe.knob = budget_knob(geometry);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
