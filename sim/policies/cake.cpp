// SPDX-License-Identifier: Apache-2.0
// CAKE: layers share one budget by how they attend. Over the window's rows and the entries before
// it, with p the attention of one query head in one row,
//   preference of a layer = (sum of -p ln p)^(1/tau1) x (sum over entries of the rows' variance of
//                           p)^(1/tau2)
// Of (B - window) x layers entries a head, a layer gets its share of all preferences, at most the
// prompt; what is over, by that limit or by rounding down, goes evenly to layers that have room.
// An entry's score is mean + gamma x variance of its p, pooled, mean of the group; a layer's heads
// keep their best, and the window. After every decode row each head is cut again to the same
// number, by that row's own attention, pooled in the order in which the cache lies: falling scores
// of the last cut, then the window (equal scores keep their places).
// A prompt of at most B + window tokens is left alone, and then cut to B by the first decode row.
// Source: Qin et al., arXiv 2503.12491; code antgroup/cakekv (window 32, gamma 200, kernel 5;
// tau1 and tau2 are chosen for each model and budget there, 1.6 and 0.4 for Llama-3.1-8B at 1,024).
// Its cascade (use_cascading, off by default) cuts lower layers again as higher ones arrive, and
// ends with the same entries unless the rounding takes a layer's share below its last; memory
// between is total + one layer then, which a note says; here all layers attend first. Preferences
// of nothing (no variance at all) share evenly.
#include <algorithm>

#include <fmt/format.h>

#include "sim/policies/cake_rule.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/one_list.h"

namespace kvspan::policies {
namespace {

std::vector<Parameter> cake_parameters() {
  using Kind = Parameter::Kind;
  return {budget_parameter("20%", "entries kept per layer and KV head, on average"),
          {.name = "window",
           .fallback = "32",
           .unit = "rows",
           .help = "observation window, inside the budget",
           .range = {2, 1e6}},
          {.name = "kernel",
           .fallback = "5",
           .unit = "entries",
           .help = "average pooling, odd",
           .range = {1, 1e6}},
          {.name = "gamma",
           .kind = Kind::real,
           .fallback = "200",
           .help = "weight of the variance in a score",
           .range = {0, 1e9}},
          {.name = "tau1",
           .kind = Kind::real,
           .fallback = "1",
           .help = "temperature of a layer's entropy",
           .range = {0.01, 100}},
          {.name = "tau2",
           .kind = Kind::real,
           .fallback = "1",
           .help = "temperature of a layer's variance",
           .range = {0.01, 100}}};
}

// Most entries of one head over all layers while the prompt is read, if those that have attended
// share the whole budget and are cut before the next one attends.
TokenCount cascade_peak(const Geometry& geometry, TokenCount tokens, TokenCount window) {
  const TokenCount before = geometry.layers() - 1;
  return std::min(before * (geometry.evict_point - window), (tokens - window) * (before + 1)) +
         before * window + geometry.evict_point;
}

}  // namespace

PolicyEntry cake() {
  PolicyEntry entry;
  entry.name = "cake";
  entry.kind = MethodKind::layer_budget;
  entry.summary = "layers share a budget by entropy and variance of their attention, in decode too";
  entry.source = "Qin et al. 2025, arXiv 2503.12491; code antgroup/cakekv";
  entry.evidence = "code read";
  entry.differs =
      "the code has a cascade, too (off by default), which holds the total and one layer while the "
      "prompt is read; here all layers attend before any is cut, and a note says the other peak; "
      "shares are formed in fp32 there";
  entry.needs = "q and k, or probabilities of the last `window` prompt rows and of all decode rows";
  entry.parameters = cake_parameters();
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const CakeSettings settings{arguments.count("window"), odd_count(arguments, "kernel"),
                                arguments.real("gamma"), arguments.real("tau1"),
                                arguments.real("tau2")};
    const bool even = geometry.trace == nullptr;
    Scoring scoring;
    scoring.make = [settings](const LayerShape&) { return std::make_unique<CakeVotes>(settings); };
    scoring.window = settings.window;
    scoring.by_place = true;
    scoring.order = {.by_score = true, .when_full = true};
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    recipe.shape = own(std::make_shared<CakeShares>(settings, even));
    recipe.protect = own(protect_recent(settings.window));
    const TokenCount tokens = entries_of(arguments, "budget", geometry);
    Rule in_decode;
    in_decode.schedule = Schedule::each_decode_row();
    in_decode.scorer = [kernel = settings.kernel](const LayerShape&) {
      return std::make_unique<CakeRow>(kernel);
    };
    in_decode.budget = std::make_shared<CakeSharesInDecode>(settings, even);
    in_decode.sizing = [tokens](const Pass& pass) { return Sizing{tokens, pass.evict_point}; };
    in_decode.protect = [window = settings.window](const Pass&, TokenCount) {
      return Protect{0, window};
    };
    in_decode.order.by_score = true;
    recipe.more_rules.push_back(std::move(in_decode));
    if (even) {
      recipe.notes.emplace_back(
          "the prompt decides how layers share the budget; evenly here, which gives its sum");
    }
    const RowIndex prompt = geometry.evict_point;
    if (tokens > settings.window && prompt > tokens + settings.window && geometry.layers() > 1) {
      recipe.notes.push_back(
          fmt::format("with the code's cascade the prompt would peak at {} entries a head over all "
                      "layers, not at {}",
                      cascade_peak(geometry, tokens, settings.window), prompt * geometry.layers()));
    }
    charge_shown_scores(recipe, geometry, prompt - settings.window);
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
