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
#include "sim/policies/shared/entry_values.h"
#include "sim/policies/shared/fitted.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
namespace {

constexpr TokenCount kStabilizers = 2500;
constexpr RowIndex kMostSamples = 4096;  // of a head

std::vector<Samples> gather(const Trace& trace, int layer, RowIndex from, RowIndex end,
                            const FitOptions& options) {
  const TraceMeta& m = trace.meta();
  const RowIndex gap =
      std::clamp<RowIndex>(options.window, 1, std::max<RowIndex>(1, (end - from) / 4)) + 1;
  const auto utility = largest_future(trace, layer, gap, from, end);
  const LayerVectors k = read_vectors(trace, layer, 'k', from, end);
  const LayerVectors v = read_vectors(trace, layer, 'v', from, end);
  const RowIndex last = std::max(from, end - gap);
  const RowIndex stride = std::max<RowIndex>(1, (last - from + kMostSamples - 1) / kMostSamples);
  std::vector<Samples> out(index(m.kv_heads));
  for (int h = 0; h < m.kv_heads; ++h) {
    Samples& s = out[index(h)];
    s.width = index(m.head_dim + m.v_head_dim);
    for (RowIndex i = from; i < last; i += stride) {
      for (const auto& part : {k.at(i, h), v.at(i, h)})
        s.x.insert(s.x.end(), part.begin(), part.end());
      s.y.push_back(std::log(1e-6 + static_cast<double>(utility[index(h)][index(i)])));
    }
  }
  return out;
}

struct LocretSettings : FitSource {
  std::shared_ptr<const LayerTable> table;
};

BirthValues values_of(const LocretSettings& s) {
  const auto self = std::make_shared<LayerModels>("locret", s);
  return [table = s.table, self](const View& view, int head, TokenIndex begin, TokenIndex end,
                                 std::span<double> out) {
    const LayerShape& shape = view.shape();
    if (table) {
      const double* row = table->layers[index(shape.layer)].data() + head * table->tokens;
      std::copy(row + begin, row + end, out.begin());
      return;
    }
    std::vector<float> x;
    for (TokenIndex t = begin; t < end; ++t) {
      for (const std::vector<float>& part : {view.key(head, t), view.value(head, t)})
        x.insert(x.end(), part.begin(), part.end());
    }
    const auto width = index(shape.k_dim + shape.v_dim);
    self->of(shape, shape.heads, width)[index(head)].evaluate(x, out);
  };
}

}  // namespace

FittedScorer locret_fit() {
  FittedScorer out;
  out.name = "locret";
  out.features = "k; v";
  out.label = "log(1e-6 + largest probability of a row more than `local` behind it)";
  out.methods = {"ridge"};
  out.gather = gather;
  out.fit = [](const Samples& samples, const FitOptions& o) {
    return fit_ridge(samples, o.lambda);
  };
  out.quality = [](const Regressor& model, const Samples& samples, const auto&...) {
    return agreement(model, samples);
  };
  return out;
}

PolicyEntry locret() {
  using Kind = Parameter::Kind;
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
  entry.parameters = {
      budget_parameter(),
      {.name = "scorer",
       .kind = Kind::word,
       .fallback = "ridge",
       .help = "file: `scores` of `weights`",
       .choices = {"ridge", "file"}},
      weights_parameter(),
      {.name = "local",
       .fallback = "100",
       .unit = "tokens",
       .help = "the prompt's tail, a chunk of its own; competes under a share only"},
      {.name = "stabilizers",
       .fallback = "auto",
       .unit = "tokens",
       .help = "newest kept after a chunk; auto: 2500, at most half the budget"}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const Amount budget = arguments.amount("budget");
    const TokenCount total = entries_of(arguments, "budget", geometry);
    if (!arguments.has("stabilizers"))
      arguments.set("stabilizers", std::to_string(std::min(kStabilizers, total / 2)));
    const TokenCount stabilizers = arguments.count("stabilizers");
    LocretSettings s;
    Recipe recipe;
    if (arguments.is("scorer", "file")) {
      if (arguments.is("weights", "self")) {
        throw ConfigError(
            "locret(scorer=file): found weights=self, expected a safetensors file with `scores` "
            "[layers, heads, tokens]");
      }
      s.table = std::make_shared<LayerTable>(
          read_layer_table(arguments.text("weights"), {"scores"}, geometry, "locret"));
      if (s.table->heads != geometry.kv_heads)
        throw ConfigError("locret(scorer=file): scores are per KV head, found one per query head");
    } else {
      s.weights = load_weights(arguments, "ridge");
      recipe.notes.push_back(fitted_note(arguments, "ridge", geometry));
    }
    s.fit.window = arguments.count("local");
    s.fit_end = geometry.evict_point / 2;
    s.trace = geometry.trace;
    s.memo = geometry.memo;
    const Needs needs = s.table ? Needs{} : Needs{.k = true, .v = true};

    const bool share = budget.kind == Amount::Kind::share;
    recipe.early = share ? last_row_decodes(geometry) : 0;
    const RowIndex prefilled = geometry.evict_point - recipe.early;
    const RowIndex tail = prefilled - arguments.count("local");  // where the tail begins
    Rule rule;
    rule.schedule = share || arguments.count("local") == 0 ? Schedule::each_chunk()
                                                           : Schedule::chunks_before_evict_point();
    rule.scorer = birth_scorer(needs, [s](const LayerShape&) { return values_of(s); });
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
