// SPDX-License-Identifier: Apache-2.0
// HeadKV: SnapKV's votes under a fixed budget per (layer, head), from importance scores that were
// measured once for the model. All heads of all layers share one pool.
//
//   p    = score^temp, normalised over all heads of all layers;  b = B - window
//   pool = floor(b / beta) * heads of the model (a larger beta shares less)
//   b_lh = round(p_lh * pool + b - floor(b / beta));  a head keeps b_lh + window
//   A prompt shorter than the budget stays whole.
//
// The floor is Python's of floats (22 // 1.1 is 19). The sum over heads is that of b, up to
// rounding. heads=FILE holds scores [layers][query or KV
// heads]; of a file with query heads each KV head takes its group's mean (group=none, as in the
// authors' code: one set per query head). heads=TRACE, and auto, the replayed one: a stand-in, the
// mean attention of a head outside the first 4 and the newest `window` tokens, over rows [N/2, N);
// not the authors' scores, which come from needle prompts.
// Source: Fu et al., arXiv 2410.19258; code FYYFU/HeadKV (window 8, kernel 7, max in its runners).
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/head_masks.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/whole_trace.h"
#include "sim/policy/memo.h"

namespace kvspan::policies {
namespace {

class HeadPool final : public Budget {
 public:
  //   share [stored layers][heads] a head's part of the pool, 1 on average over the model
  HeadPool(HeadScores share, double beta, TokenCount window)
      : share_(std::move(share)), beta_(beta), window_(window) {}

  TokenCount capacity(const LayerShape& shape, int head, const Sizing& sizing) const override {
    if (sizing.tokens == kAll || sizing.rows < sizing.tokens) return kAll;
    const TokenCount window = std::min(window_, sizing.window_rows);
    const TokenCount base = sizing.tokens - window;
    if (base <= 0) return sizing.tokens;  // the newest `budget` entries
    const double pooled = floor_quotient(static_cast<double>(base), beta_);
    return window + std::llrint(share_[index(shape.layer)][index(head)] * pooled +
                                (static_cast<double>(base) - pooled));
  }

 private:
  HeadScores share_;
  double beta_;
  TokenCount window_;
};

// score^temp, 1 on average; of query heads, the mean of each group unless they stay apart.
HeadScores shares(HeadScores scores, double temp, const Geometry& geometry, bool per_query_head,
                  const std::string& from) {
  double sum = 0;
  std::size_t count = 0;
  for (auto& layer : scores) {
    for (double& score : layer) {
      if (score < 0) {
        throw TraceError(
            fmt::format("headkv: '{}' holds the score {:g}, expected none below 0", from, score));
      }
      score = std::pow(score, temp);
      sum += score;
      ++count;
    }
  }
  const int group = geometry.query_heads / geometry.kv_heads;
  for (auto& layer : scores) {
    for (double& score : layer) score = sum > 0 ? score * static_cast<double>(count) / sum : 1.0;
    if (per_query_head || layer.size() == index(geometry.kv_heads)) continue;
    std::vector<double> mean(index(geometry.kv_heads), 0.0);
    for (std::size_t q = 0; q < layer.size(); ++q) mean[q / index(group)] += layer[q] / group;
    layer = std::move(mean);
  }
  return scores;
}

}  // namespace

PolicyEntry headkv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "headkv";
  entry.kind = MethodKind::head_budget;
  entry.summary = "SnapKV's votes under fixed budgets per head, from importance scores";
  entry.source = "Fu et al. 2024, arXiv 2410.19258";
  entry.evidence = "code read";
  entry.differs =
      "the README says that a larger beta shares more, the formula that it shares less: the "
      "formula; the code stores per query head (group=none), here per KV head";
  entry.needs =
      "q and k, or probabilities of the last `window` prompt rows; without heads=FILE or TRACE of "
      "the last half of the rows";
  entry.parameters = votes_parameters(8, 7);
  entry.parameters.insert(entry.parameters.begin(),
                          {budget_parameter(),
                           {.name = "heads",
                            .kind = Kind::text,
                            .fallback = "auto",
                            .unit = "file",
                            .help = "file of scores, [layers][query or KV heads], JSON or TSV, or "
                                    "a trace to take them from; "
                                    "auto: this trace"},
                           {.name = "beta",
                            .kind = Kind::real,
                            .fallback = "1.2",
                            .help = "the pool is 1 / beta of the budget",
                            .range = {1, 1e6}},
                           {.name = "temp",
                            .kind = Kind::real,
                            .fallback = "1",
                            .help = "exponent of the scores",
                            .range = {0, 100}}});
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const TokenCount window = arguments.count("window");
    const Scoring votes = votes_scoring(arguments);
    const int heads = geometry.shape(0, votes.per_query_head).heads;
    Recipe recipe = budgeted(arguments, geometry, by_default(votes));
    HeadScores scores(index(geometry.layers()), std::vector<double>(index(heads), 1.0));
    const HeadSource source = head_source(arguments, "heads", geometry);
    const std::string from = source.fitted() ? source.fitted_on() : source.file;
    if (!source.fitted()) {
      scores = read_head_scores("headkv", from, geometry, true);
      if (votes.per_query_head && scores.front().size() != index(geometry.query_heads)) {
        throw ConfigError(fmt::format(
            "headkv(group=none): '{}' has {} scores a layer, expected {} query heads; nearest: "
            "group=mean",
            from, scores.front().size(), geometry.query_heads));
      }
    } else if (source.trace != nullptr) {
      scores = *remembered<HeadScores>(geometry.memo,
                                       fmt::format("mean_mass_outside {} {}", from, window),
                                       [&] { return mean_mass_outside(*source.trace, 4, window); });
      recipe.notes.push_back(
          fmt::format("stand-in: head scores are the attention outside sinks and window on {}, not "
                      "the authors'",
                      from));
    } else {
      recipe.closed_form = false;
      recipe.notes.emplace_back("head scores are fitted on a trace; equal here");
    }
    recipe.shape = own(std::make_shared<HeadPool>(
        stored_layers(
            shares(std::move(scores), arguments.real("temp"), geometry, votes.per_query_head, from),
            geometry),
        arguments.real("beta"), window));
    recipe.protect = by_default(protect_recent(window));
    recipe.charge.once = 4LL * geometry.layers() * heads;  // the length of every head
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
