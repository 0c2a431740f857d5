// SPDX-License-Identifier: Apache-2.0
// ForesightKV: after the prompt and every `interval` tokens a small network per (layer, KV head)
// looks at how the last `interval` queries attended to each entry, and at its k and v, and gives a
// drop score; the newest `interval` entries are never candidates and count inside the budget.
// Source: arXiv 2602.03203; code RUCAIBox/ForesightKV (supervised_training/, evaluation/).
//   Features of an entry, for each query head of the group: max, min and sum of its probability
//   over the interval, the sums over its last 16, 8 and 32 rows, the running sum of the sums, and
//   the same decayed by 0.9 an interval; then k (post-rotary) and v. At the first decision, once as
//   many are held as the budget allows, all sums over the interval and both running ones are over
//   all rows so far. (Its code holds the last window_size queries for that, 2,048 in its example;
//   there the decayed sum is rebuilt from the plain one: here it is the training code's. In
//   training only the running sums start from all rows; the fit here does as the evaluation does.)
//   select=sample: the published choice, also at inference: as many victims as are needed, drawn
//   without replacement from the softmax of the drop scores of the twice as many worst (Gumbel
//   top-k).
//   Decisions are counted from the prompt's end; the authors act when the number of tokens is a
//   multiple of the interval.
// scorer=golden is Golden Eviction, the label of the training: a bound that reads the future. It
// drops the smallest  max over future blocks of `interval` rows of the mean over the block's rows
// and the group's query heads of the full cache's probability.
// scorer=logit, ridge, mlp: stand-ins, fitted on the golden trajectory over the first half of the
// prompt and on first decisions at six lengths of it, or loaded from a file of `kvspan fit`:
// logistic regression of "golden drops it", ridge of -log(label + 1e-6), the published network with
// its pairwise hinge loss. attn: ridge without k, v. The default is the one that holds up after a
// prompt longer than those of its fit, where ridge does not.
#include <algorithm>

#include "sim/base/error.h"
#include "sim/policies/foresightkv_rule.h"
#include "sim/policies/shared/helpers.h"

namespace kvspan::policies {
namespace {

// Parameters of the published network, all layers.
std::int64_t network_parameters(const Geometry& g, bool vectors) {
  const std::int64_t group = g.query_heads / g.kv_heads;
  const std::int64_t inputs = 8 * group + (vectors ? g.k_dim + g.v_dim : 0);
  return std::int64_t{g.layers()} * g.kv_heads * (inputs * 16 + 33);
}

constexpr TokenCount kPublishedInterval = 128;  // of the evaluation harness

}  // namespace

PolicyEntry foresightkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "foresightkv";
  entry.kind = MethodKind::eviction;
  entry.summary = "a learned drop score of recent attention, k and v, every interval of tokens";
  entry.source = "arXiv 2602.03203; code RUCAIBox/ForesightKV";
  entry.evidence = "code read; weights fitted here";
  entry.differs =
      "the interval is 256 in training and 128 in evaluation; the evaluation code rebuilds "
      "the decayed sum from the wrong tensor, here it decays as in training; its count of tokens "
      "runs on over the samples of a run, so that from the second one on the prompt is cut only by "
      "chance: here each starts anew; its first sums are over the queries that it holds (2,048 in "
      "its example), here over all; its prompts are shorter than the budget, those of the "
      "stand-ins' fits have several lengths, since the first sums grow with them";
  entry.needs = "q, k and v; golden: probabilities of all decode rows";
  entry.parameters = {
      budget_parameter(),
      {.name = "scorer",
       .kind = Kind::word,
       .fallback = "logit",
       .help = "golden: the label itself, a bound; file: whatever `weights` holds",
       .choices = {"logit", "ridge", "mlp", "attn", "golden", "file"}},
      weights_parameter(),
      {.name = "interval",
       .fallback = "auto",
       .unit = "tokens",
       .help = "between decisions, from the prompt's first token on; the newest so many are never "
               "candidates; auto: 128, or budget / 4",
       .range = {1, 1e6}},
      {.name = "select",
       .kind = Kind::word,
       .fallback = "auto",
       .help = "victims drawn at random, or the worst; auto: sample as published, golden: topk",
       .choices = {"sample", "topk"}},
      seed_parameter("of draws and fits")};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const std::string scorer = arguments.text("scorer");
    const bool golden = scorer == "golden";
    const bool attention_only = scorer == "attn";
    // Published with budgets of 1,024 and more: under a small one the newest 128 would be all of
    // it.
    const TokenCount budget = entries_of(arguments, "budget", geometry);
    if (!arguments.has("interval")) {
      arguments.set("interval",
                    std::to_string(std::clamp<TokenCount>(budget / 4, 1, kPublishedInterval)));
    }
    const RowIndex interval = arguments.count("interval");
    const std::uint64_t seed = seed_of(arguments, geometry);
    if (!arguments.has("select")) arguments.set("select", golden ? "topk" : "sample");
    if (scorer == "file" && arguments.is("weights", "self")) {
      throw ConfigError(
          "foresightkv(scorer=file): found weights=self, expected a file of `kvspan fit "
          "foresightkv`");
    }
    if (golden && arguments.given("weights"))
      throw ConfigError("foresightkv(scorer=golden) has no weights: leave out weights=");
    const std::string method = attention_only ? "ridge" : scorer == "file" ? "" : scorer;
    const auto weights = golden ? nullptr : load_weights(arguments, method);

    const Schedule schedule =
        Schedule::from_evict_point(interval, (geometry.evict_point - 1) % interval);
    Scoring scoring;
    scoring.evicts_in_decode = true;
    std::string note = "bound: reads the future";
    if (golden) {
      scoring.make = [geometry, interval](const LayerShape& shape) {
        return std::make_unique<Golden>(geometry, shape.layer, interval);
      };
    } else {
      Foresight::Settings settings;
      settings.schedule = schedule;
      settings.interval = interval;
      settings.budget = budget;
      settings.vectors = !attention_only;
      settings.weights = weights;
      settings.fit.method = method;
      settings.fit.seed = seed;
      // As the fit takes them: many budgets have one fit.
      const RowIndex fit_end = geometry.evict_point / 2;
      settings.fit.interval = std::min(interval, std::max<RowIndex>(1, fit_end / 4));
      settings.fit.budget = std::min(budget, std::max<TokenCount>(1, fit_end / 2));
      settings.fit.attention_only = attention_only;
      settings.fit_end = fit_end;
      settings.trace = geometry.trace;
      settings.memo = geometry.memo;
      scoring.make = [settings](const LayerShape& shape) {
        return std::make_unique<Foresight>(shape, settings);
      };
      note = fitted_note(arguments, attention_only ? "ridge without k and v" : scorer, geometry);
    }
    Recipe recipe = budgeted(arguments, geometry, own(scoring), own(schedule));
    recipe.bound = golden;
    recipe.notes.push_back(note);
    recipe.protect = own(protect_recent(interval));
    if (arguments.is("select", "sample")) recipe.pick = own(sampled(seed));
    // Both running sums of every query head of the group.
    recipe.charge.entry = 2 * (geometry.query_heads / geometry.kv_heads) * geometry.kv_bytes;
    // The network, and the queries of an interval.
    recipe.charge.once =
        geometry.kv_bytes * (network_parameters(geometry, !attention_only) +
                             interval * geometry.query_heads * geometry.k_dim * geometry.layers());
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
