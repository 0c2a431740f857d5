// SPDX-License-Identifier: Apache-2.0
// Locret: a trained retaining head gives every entry one score at birth. After every chunk of the
// prompt all stored and new entries compete; the newest `stabilizers` are safe except after the
// last of these chunks. The prompt's last `local` tokens are a pass of their own, after which, as
// in decode, nothing leaves.
// Source: arXiv 2410.01805; code huangyuxiang03/Locret (inference/infer.py). With a budget in
// tokens that is the rule. With a share it is that of the evaluation code of arXiv 2506.17121
// (eval/locret_cache.py): all but the prompt's last token are prefilled, after every chunk max(
// stabilizers, 64 * ceil(int(share * tokens so far) / 64)) stay, and after the last `local` tokens
// they compete with all others, nobody being safe. That paper's footprint formula instead adds
// chunk by chunk (kvspan's locret_head()).
// Both use 2,500 stabilizers with chunks of thousands; auto is at most half the budget, without
// which short prompts would never evict.
// scorer=ridge: a stand-in for the retaining heads (which map q, k and v through 1,024 units):
// ridge of log(1e-6 + largest probability of any row more than `local` behind it, over the group)
// on k and v, fitted on the first half of the prompt, or loaded from a file of `kvspan fit`.
// scorer=file: `scores`.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policies/shared/birth_models.h"
#include "sim/policies/shared/entry_values.h"

namespace kvspan::policies {
namespace {

constexpr TokenCount kStabilizers = 2500;

std::vector<Samples> gather(const Trace& trace, int layer, RowIndex from, RowIndex end,
                            const FitOptions& options) {
  const RowIndex gap =
      std::clamp<RowIndex>(options.window, 1, std::max<RowIndex>(1, (end - from) / 4)) + 1;
  const auto utility = largest_future(trace, layer, gap, from, end);
  return samples_of_entries(trace, layer, from, std::max(from, end - gap),
                            [&](int head, RowIndex token) {
                              const float most = utility[index(head)][index(token)];
                              return std::log(1e-6 + static_cast<double>(most));
                            });
}

}  // namespace

FittedScorer locret_fit() {
  return ridge_of_entries(
      "locret", "log(1e-6 + largest probability of a row more than `local` behind it)", gather);
}

PolicyEntry locret() {
  PolicyEntry entry;
  entry.name = "locret";
  entry.kind = MethodKind::eviction;
  entry.summary = "a learned score at birth; after every chunk of the prompt all entries compete";
  entry.source = "arXiv 2410.01805; code huangyuxiang03/Locret; rule also arXiv 2506.17121";
  entry.evidence = "code read; weights fitted here";
  entry.differs =
      "the authors' program leaves the prompt's tail alone (a budget in tokens), that of arXiv "
      "2506.17121 lets it compete and prefills all but the prompt's last token (a share). That "
      "paper's metric adds the stabilizers to every chunk, its code counts them inside: the code "
      "is followed, the metric is locret_head() of the analytic model";
  entry.needs = "q, k and v (file: nothing)";
  entry.parameters = {budget_parameter()};
  for (Parameter& p : birth_model_parameters()) entry.parameters.push_back(std::move(p));
  entry.parameters.insert(
      entry.parameters.end(),
      {{.name = "local",
        .fallback = "100",
        .unit = "tokens",
        .help = "the prompt's tail, a chunk of its own; competes under a share only"},
       {.name = "stabilizers",
        .fallback = "auto",
        .unit = "tokens",
        .help = "newest kept after a chunk; auto: 2500, at most half the budget"}});
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const Amount budget = arguments.amount("budget");
    const TokenCount total = entries_of(arguments, "budget", geometry);
    if (!arguments.has("stabilizers"))
      arguments.set("stabilizers", std::to_string(std::min(kStabilizers, total / 2)));
    const TokenCount stabilizers = arguments.count("stabilizers");
    Recipe recipe;
    BirthModel model = birth_model(arguments, geometry);
    recipe.notes = model.notes;
    model.fit.window = arguments.count("local");

    const bool share = budget.kind == Amount::Kind::share;
    recipe.early = share ? last_row_decodes(geometry) : 0;
    const RowIndex prefilled = geometry.evict_point - recipe.early;
    const RowIndex tail = prefilled - arguments.count("local");  // where the tail begins
    Rule rule;
    rule.schedule = share || arguments.count("local") == 0 ? Schedule::each_chunk()
                                                           : Schedule::chunks_before_evict_point();
    rule.scorer = birth_model_scoring(model).make;
    rule.ranking = fmt::format("locret({},{},{})", arguments.text("scorer"),
                               arguments.text("weights"), arguments.count("local"));
    rule.budget = uniform_budget();
    rule.sizing = [=, n = geometry.evict_point](const Pass& pass) {
      if (pass.end > tail && !(share && pass.is_evict_point())) return Sizing{kAll, n};
      if (!share) return Sizing{total, n};
      const auto kept =
          static_cast<TokenCount>((1.0 - budget.one_minus_share()) * static_cast<double>(pass.end));
      return Sizing{std::max(stabilizers, (kept + 63) / 64 * 64), n};
    };
    rule.protect = [=](const Pass& pass, TokenCount) {
      return Protect{0, pass.end < tail ? stabilizers : 0};
    };
    recipe.more_rules.push_back(rule);
    if (tail > 0 && tail < prefilled) recipe.cuts.push_back(tail);
    recipe.knob = budget_knob(geometry);
    // One score an entry; the published retaining heads, [q; k; v] -> 1,024 -> KV heads.
    recipe.charge.entry = geometry.kv_bytes;
    const std::int64_t inputs = std::int64_t{geometry.query_heads} * geometry.k_dim +
                                std::int64_t{geometry.kv_heads} * (geometry.k_dim + geometry.v_dim);
    recipe.charge.once =
        std::int64_t{geometry.layers()} * 1024 * (inputs + geometry.kv_heads) * geometry.kv_bytes;
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
