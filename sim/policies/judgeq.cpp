// SPDX-License-Identifier: Apache-2.0
// Judge Q: 32 trained soft tokens after the prompt attend to it as an answer would; what they
// attend to is kept, once, after the prompt. The soft tokens' own entries are then deleted.
// Source: arXiv 2509.10798, from its abstract and a third-party summary; no code was to be had.
// Silent: pooling, a recent window and the reduction over a group's query heads (here 1, 0 and the
// mean). scorer=oracle: what the soft tokens are trained to imitate, the mean of the decode rows'
//   attention. A bound that reads the future.
// scorer=static: stand-in for soft tokens, which are the same for every prompt: per query head `m`
//   fixed queries before rotary, rotated to the m positions after the prompt; the mean of their
//   softmax over the prompt's keys. With weights=self they are k-means centres of the prompt's own
//   queries (at most 1,024 rows, evenly spread), which is no look-ahead; with a file, of its
//   trace's.
// scorer=ridge: the query is predicted from the mean of the last 32 queries and the mean of all, by
//   ridge regression on cut points in the first half of the prompt; then as static, at m positions.
#include "sim/base/error.h"
#include "sim/policies/judgeq_rule.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
PolicyEntry judgeq() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "judgeq";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps what queries that stand for the answer attend to, once, after the prompt";
  entry.source = "arXiv 2509.10798 (abstract; third-party summary)";
  entry.evidence = "secondary; weights fitted here";
  entry.differs =
      "the official code could not be obtained: pooling, window and group reduction are "
      "ours";
  entry.needs =
      "q and k (oracle: probabilities of all decode rows; file: nothing); rope_* to place "
      "the queries";
  entry.parameters = {budget_parameter(),
                      {.name = "scorer",
                       .kind = Kind::word,
                       .fallback = "static",
                       .help = "oracle: the label itself, a bound; file: `scores` of `weights`",
                       .choices = {"static", "ridge", "oracle", "file"}},
                      weights_parameter(),
                      {.name = "m",
                       .fallback = "32",
                       .unit = "queries",
                       .help = "that stand for the answer",
                       .range = {1, 4096}},
                      {.name = "pool",
                       .fallback = "1",
                       .unit = "entries",
                       .help = "kernel of max pooling, odd",
                       .range = {1, 1e6}},
                      {.name = "window",
                       .fallback = "0",
                       .unit = "tokens",
                       .help = "newest kept whatever their score"},
                      {.name = "group",
                       .kind = Kind::word,
                       .fallback = "mean",
                       .help = "query heads to KV head",
                       .choices = {"mean", "max"}},
                      seed_parameter("of the centres")};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    auto s = std::make_shared<JudgeQ::Settings>();
    s->scorer = arguments.text("scorer");
    s->geometry = geometry;
    s->group = parse_group(arguments.text("group"));
    s->kernel = odd_count(arguments, "pool");
    s->fit.method = s->scorer == "ridge" ? "ridge" : "centres";
    s->fit.queries = static_cast<int>(arguments.count("m"));
    s->fit.seed = seed_of(arguments, geometry);
    s->fit_end = geometry.evict_point / 2;
    Recipe recipe = budgeted(arguments, geometry, {});
    Scoring scoring;
    if (s->scorer == "file") {
      if (arguments.is("weights", "self")) {
        throw ConfigError(
            "judgeq(scorer=file): found weights=self, expected a safetensors file with `scores` "
            "[layers, heads, tokens]");
      }
      s->table = std::make_shared<LayerTable>(
          read_layer_table(arguments.text("weights"), {"scores"}, geometry, "judgeq"));
      scoring.per_query_head =
          s->table->heads == geometry.query_heads && geometry.query_heads != geometry.kv_heads;
    } else if (s->scorer == "oracle") {
      if (arguments.given("weights"))
        throw ConfigError("judgeq(scorer=oracle) has no weights: leave out weights=");
      recipe.bound = true;
      recipe.notes.emplace_back("bound: reads the future");
    } else {
      s->weights = load_weights(arguments, arguments.given("scorer") ? s->fit.method : "");
      if (s->weights) {  // the file says what it holds
        s->fit.method = s->weights->regressors.front().front().method;
        s->scorer = s->fit.method == "ridge" ? "ridge" : "static";
        arguments.set("scorer", s->scorer);
      }
      recipe.notes.push_back(
          s->scorer == "static" && !s->weights
              ? "stand-in: centres of this prompt's queries, not the authors' soft tokens"
              : fitted_note(arguments, s->scorer, geometry));
    }
    scoring.make = [settings = std::shared_ptr<const JudgeQ::Settings>(s)](const LayerShape&) {
      return std::make_unique<JudgeQ>(settings);
    };
    scoring.sharing = Sharing::always;
    recipe.scorer = own(scoring);
    recipe.protect = own(protect_recent(arguments.count("window")));
    // Embeddings of the soft tokens; query heads x head_dim stands for the hidden size.
    const std::int64_t m = s->fit.queries;
    recipe.charge.once = m * geometry.query_heads * geometry.k_dim * geometry.kv_bytes;
    // Their own entries, while they attend: with the prompt's last row.
    recipe.charge.during = [last = geometry.evict_point - 1,
                            bytes = m * geometry.layers() * geometry.kv_heads *
                                    geometry.entry_bytes()](RowIndex row) {
      return row == last ? bytes : std::int64_t{0};
    };
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
