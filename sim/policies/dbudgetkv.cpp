// SPDX-License-Identifier: Apache-2.0
// DBudgetKV (later versions: ReFreeKV): once, after the prompt, every layer keeps the first tokens
// and as long a recent window as it takes to hold nearly all of the attention's norm. Nothing
// leaves in decode; the first two layers of the model stay whole.
//
// Order: the sinks, then from the newest token to the oldest. a_h is the mean attention of the
// prompt's last `rows` rows in query head h, over the rows that see a key. One cut for all heads
// of the layer:
//
//   norm=code   the sinks are outside of the norms: keep from the largest j with
//               1 - mean_h ||a_h[j:]|| / mean_h ||a_h[sinks:]|| <= threshold
//   norm=paper  the sinks count: a is averaged over heads first; keep the first i of the order,
//               the smallest i with 1 - ||a[first i]|| / ||a|| < threshold. Strong sinks leave
//               little else
//
// The paper's budgets (15 to 93 %) look like the code's norm, so that is the default. threshold=0
// keeps all.
//
// rank=votes is the command of the program's README (method h2o), another rule: the prompt's last 8
// rows are kept, and rank the others by what they attend to, per query head; how many of these stay
// is one number for the layer, by the code's norm of the last row alone.
// Source: Ni et al., arXiv 2502.16886; code Patrick-Ni/ReFreeKV (StreamingLLMKVCluster,
// H2OKVCluster). Not copied: averaged over more rows than one, the code's attention has no causal
// mask and reads the future.
#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/dbudgetkv_rule.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

// By the program's README: its rank is another, and so are its defaults.
constexpr RowIndex kVoters = 8;

void defaults(Arguments& arguments, bool by_votes) {
  const auto otherwise = [&](const char* name, const char* value) {
    if (!arguments.has(name)) arguments.set(name, value);
  };
  otherwise("threshold", by_votes ? "0.05" : "0.01");
  otherwise("skip", by_votes ? "0" : "2");
  if (!by_votes) return;
  for (const char* name : {"sinks", "norm", "rows"}) {
    if (arguments.given(name)) {
      throw ConfigError(fmt::format(
          "dbudgetkv({}): rank=votes has no sinks and one norm, of the prompt's last row; leave it "
          "out, or use rank=position",
          name));
    }
  }
}

}  // namespace

PolicyEntry dbudgetkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "dbudgetkv";
  entry.kind = MethodKind::layer_budget;
  entry.summary = "sinks and a recent window as long as the attention's norm asks for (ReFreeKV)";
  entry.source = "Ni et al. 2025, arXiv 2502.16886";
  entry.evidence = "code read, paper read";
  entry.differs =
      "the paper's norm includes the sinks, the code's does not (norm=code is the default: "
      "the published budgets look like it); 1 % in the paper; the README's command ranks by votes "
      "of the last 8 rows, at 5 % and in all layers (rank=votes); averaged over rows, the code's "
      "attention has no causal mask, here it has";
  entry.needs = "q and k, or probabilities of the prompt's last `rows` rows (rank=votes: 8)";
  entry.parameters = {
      {.name = "threshold",
       .kind = Kind::real,
       .fallback = "auto",
       .help = "share of the norm that may be lost; auto: 0.01, rank=votes: 0.05",
       .range = {0, 1}},
      {.name = "sinks", .fallback = "4", .unit = "tokens", .help = "first tokens, kept first"},
      {.name = "norm",
       .kind = Kind::word,
       .fallback = "code",
       .help = "norms without the sinks, as in the code, or with them",
       .choices = {"code", "paper"}},
      {.name = "rows",
       .fallback = "1",
       .unit = "rows",
       .help = "last prompt rows whose attention is averaged",
       .range = {1, 1e6}},
      {.name = "skip",
       .fallback = "auto",
       .unit = "layers",
       .help = "the model's first layers, left whole; auto: 2, rank=votes: 0",
       .range = {0, 1e6}},
      {.name = "rank",
       .kind = Kind::word,
       .fallback = "position",
       .help = "sinks, then the newest; or votes of the prompt's last 8 rows, which stay",
       .choices = {"position", "votes"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const bool by_votes = arguments.is("rank", "votes");
    defaults(arguments, by_votes);
    const DBudgetSettings settings{
        arguments.real("threshold"),   arguments.count("sinks"),
        arguments.count("rows"),       static_cast<int>(arguments.count("skip")),
        arguments.is("norm", "paper"), by_votes};
    Scoring scoring;
    Recipe recipe;
    if (by_votes) {
      const RowIndex voters = geometry.evict_point > kVoters ? kVoters : 1;
      scoring.make = [settings, voters](const LayerShape& shape) {
        return std::make_unique<LastVotes>(settings.skips(shape) ? 0 : voters);
      };
      scoring.per_query_head = true;
      recipe.protect = own(protect_recent(voters));
    } else {
      scoring.make = [settings](const LayerShape& shape) {
        return std::make_unique<SinksThenNewest>(settings.sinks,
                                                 settings.skips(shape) ? 0 : settings.rows);
      };
      scoring.by_position = true;
    }
    recipe.scorer = own(scoring);
    recipe.shape = own(std::make_shared<NormCut>(settings));
    recipe.schedule = own(Schedule::at_evict_point());
    recipe.closed_form = false;
    if (geometry.trace == nullptr)
      recipe.notes.emplace_back("the prompt decides how much is kept; at most everything");
    recipe.knob = Knob{"threshold", 0, 10000, true, [](TokenCount kept) {
                         return fmt::format("{:.12g}", static_cast<double>(10000 - kept) / 10000);
                       }};
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
