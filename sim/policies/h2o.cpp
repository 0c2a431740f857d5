// SPDX-License-Identifier: Apache-2.0
// H2O: the heaviest hitters by accumulated attention, and the newest tokens; after the prompt and
// after every decode row. The sum runs over all rows so far, prompt rows included, under the
// policy's own cache, and over the query heads of the group.
// Source: Zhang et al., arXiv 2306.14048; code FMInference/H2O, which holds several variants:
//   real_drop  the default: absolute sizes of both parts
//   ratio      `utils_hh`, which masks: both parts as shares of the prompt (0.1 + 0.1), fixed once.
//              Its masks have one column more than there are tokens: of the newest R a row reads
//              R - 1 and itself, and the R-th newest waits outside with its score, held but unread,
//              to compete after that row. So a row reads H + R entries of H + R + 1
//   flexgen    h = budget / 2: after the prompt the h heaviest of all but the newest h - 1, and
//              those; in decode the new entry takes the place of the lightest of all but the newest
//              h.
//              So 2h - 1 entries are held between rows and 2h while a row attends: h - 1 heavy ones
//              and h + 1 newest. The sums are fp16 there and fp32 here.
// Not offered: the LLaMA code for lm_eval, which ranks by column sums over the whole sequence, rows
// to come included; nor what tables of ThinK (snapkv(window=32,kernel=1)), QPruningKV and
// KVCache-Factory call H2O, which acts once. The paper is for MHA; GQA sums the group.
// normalise=true divides by the rows that saw an entry, as kvpress' ObservedAttentionPress does.
// Options of awslabs/keys_values: weight=value, see h2o_rule.h; grace: of a budget B the newest
// `grace` stay whatever their sums, and the rest is heavy hitters. (It decides before the next
// token comes: its cache of B entries with grace_period g is budget=B-1, grace=g.)
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/h2o_rule.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/pages.h"

namespace kvspan::policies {
namespace {

// FlexGen's 2h - 1 entries of a budget of 2h.
class OneFree final : public Budget {
 public:
  TokenCount capacity(const LayerShape& /*shape*/, int /*head*/,
                      const Sizing& sizing) const override {
    return std::max<TokenCount>(1, 2 * (sizing.tokens / 2) - 1);
  }
};

// A decode rule of its own, because the newest h are protected there, and h - 1 after the prompt.
void flexgen(Recipe& recipe, const Geometry& geometry) {
  const int heads = geometry.shape(0, recipe.scorer.value.per_query_head).heads;
  const TokenCount tokens =
      budget_tokens(recipe.size.value, geometry, heads, geometry.entry_bytes(), "h2o: budget");
  recipe.shape = own(std::make_shared<OneFree>());
  recipe.schedule = own(Schedule::at_evict_point());
  recipe.protect = own(ProtectRule([](TokenCount held) { return Protect{0, held / 2}; }));
  Rule in_decode;
  in_decode.schedule = Schedule::each_decode_row();
  in_decode.scorer = recipe.scorer.value.make;
  in_decode.budget = recipe.shape.value;
  in_decode.sizing = [tokens](const Pass& pass) { return Sizing{tokens, pass.evict_point}; };
  in_decode.protect = [](const Pass&, TokenCount held) { return Protect{0, (held + 1) / 2}; };
  recipe.more_rules.push_back(std::move(in_decode));
}

}  // namespace

PolicyEntry h2o() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "h2o";
  entry.kind = MethodKind::eviction;
  entry.summary = "heavy hitters by accumulated attention plus the newest tokens, in decode too";
  entry.source = "Zhang et al. 2023, arXiv 2306.14048";
  entry.evidence = "code read (real_drop)";
  entry.differs =
      "the repository holds three definitions of the budget (variant=) and one that reads future "
      "rows (not offered); the masks of variant=ratio are one column too long: a row reads one "
      "entry less, and who leaves the window misses a row before it competes; \"H2O\" in the "
      "tables of ThinK, QPruningKV and KVCache-Factory acts once, after the prompt; GQA sums the "
      "group; weight=value makes shares of every row, its code of every chunk";
  entry.needs =
      "q and k, or probabilities of all rows (or column_mass of the prompt and all decode rows); "
      "weight=value: q, k and v";
  entry.parameters = {
      {.name = "heavy",
       .fallback = "auto",
       .unit = "tokens",
       .help = "heavy hitters kept; auto: budget / 2",
       .sizes = true},
      {.name = "recent",
       .fallback = "auto",
       .unit = "tokens",
       .help = "newest kept; auto: the rest of the budget",
       .sizes = true},
      budget_parameter(),
      {.name = "group",
       .kind = Kind::word,
       .fallback = "sum",
       .help = "none: one set per query head",
       .choices = {"sum", "none"}},
      {.name = "variant",
       .kind = Kind::word,
       .fallback = "real_drop",
       .help = "of the authors' code: real_drop, ratio (shares of the prompt), flexgen",
       .choices = {"real_drop", "ratio", "flexgen"}},
      {.name = "heavy_share",
       .kind = Kind::real,
       .fallback = "auto",
       .unit = "% of the prompt",
       .help = "heavy hitters kept by variant=ratio; auto: 10",
       .range = {0, 100},
       .sizes = true},
      {.name = "recent_share",
       .kind = Kind::real,
       .fallback = "auto",
       .unit = "% of the prompt",
       .help = "newest kept by variant=ratio; auto: 10",
       .range = {0, 100},
       .sizes = true},
      {.name = "normalise",
       .kind = Kind::flag,
       .fallback = "false",
       .help = "true: divides a sum by the number of rows that saw the entry"},
      {.name = "weight",
       .kind = Kind::word,
       .fallback = "none",
       .help = "value: a row's attention times the values' lengths, as shares",
       .choices = {"none", "value"}},
      {.name = "grace",
       .fallback = "auto",
       .unit = "tokens",
       .help = "newest of the budget, kept whatever their sums; auto: half"}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    Recipe recipe;
    const bool normalise = arguments.flag("normalise");
    const bool values = arguments.is("weight", "value");
    Scoring scoring = values ? value_sum_scoring(normalise) : column_sum_scoring(normalise);
    scoring.per_query_head = arguments.is("group", "none");
    recipe.scorer = own(scoring);
    recipe.schedule = own(Schedule::from_evict_point());
    recipe.charge.entry = values ? 8 : 4;  // per entry of a stored head: its sum, fp32; |v|
    recipe.knob = budget_knob(geometry);
    const bool shares = arguments.given("heavy_share") || arguments.given("recent_share");
    const bool tokens = arguments.given("heavy") || arguments.given("recent");
    if (arguments.given("grace") && (tokens || !arguments.is("variant", "real_drop")))
      throw ConfigError(
          "h2o: grace splits the budget of variant=real_drop; leave out heavy and recent");
    if (shares && !arguments.is("variant", "ratio")) {
      throw ConfigError(
          "h2o: heavy_share and recent_share belong to variant=ratio; give heavy and recent in "
          "tokens, or budget");
    }
    if (tokens && !arguments.is("variant", "real_drop")) {
      throw ConfigError(fmt::format(
          "h2o: heavy and recent belong to variant=real_drop; give {}",
          arguments.is("variant", "ratio") ? "heavy_share and recent_share" : "budget"));
    }
    if (arguments.is("variant", "ratio")) {
      if (arguments.given("budget"))
        throw ConfigError("h2o: variant=ratio takes heavy_share and recent_share, not budget");
      const auto part = [&](const char* name) {
        if (!arguments.has(name)) arguments.set(name, "10");
        return static_cast<TokenCount>(std::floor(
            arguments.real(name) * static_cast<double>(geometry.evict_point) / 100 + 1e-9));
      };
      const TokenCount heavy = part("heavy_share");
      TokenCount recent = part("recent_share");
      arguments.set("budget", "auto");
      // A prompt so short that both shares are nothing keeps its newest token.
      if (heavy + recent == 0) recent = 1;
      recipe.size = own(Amount{Amount::Kind::tokens, heavy + recent, 0, ""});
      recipe.protect = own(protect_recent(recent));
      recipe.selector = own(all_but_the_leaver(heavy + recent, recent));
      recipe.knob = std::nullopt;
      return recipe;
    }
    if (tokens) {
      if (arguments.given("budget"))
        throw ConfigError("h2o: give either budget, or heavy and recent");
      if (!arguments.given("heavy") || !arguments.given("recent")) {
        throw ConfigError(
            "h2o: heavy and recent go together; for an even split give budget instead");
      }
      arguments.set("budget", "auto");
      const TokenCount heavy = arguments.count("heavy");
      const TokenCount recent = arguments.count("recent");
      if (heavy + recent < 1) throw ConfigError("h2o: heavy + recent must be at least 1");
      recipe.size = own(Amount{Amount::Kind::tokens, heavy + recent, 0, ""});
      recipe.protect = own(protect_recent(recent));
    } else {
      recipe.size = size_of(arguments);
      recipe.protect = own(arguments.has("grace") ? protect_recent(arguments.count("grace"))
                                                  : protect_newest_half());
      if (arguments.is("variant", "flexgen")) flexgen(recipe, geometry);
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
