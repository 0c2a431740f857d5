// SPDX-License-Identifier: Apache-2.0
// KVCompose: heads rank their entries by themselves, and the r-th best of all heads of a layer form
// one composite token, so that a layer's heads keep as many, in places that they share. The context
// is read a second time behind itself, in one pass (kvspan capture --replay --replay-as context);
//   score     the largest p that an entry gets from these rows, the model's own, over the context
//             and the rows up to itself; mean of the group; plus the mean of the layer's heads
//   r-th of a layer   mean over its heads of their r-th best scores; the model's first layer has
//             the largest of all layers
// Of all composite tokens of all layers the best B x layers stay, none of a layer if need be; each
// head of a layer keeps that many of its best. form=heads: one ranking of the heads' own scores
// instead.
// Tokens behind the context, a question, have no score and stay.
// Source: Akulov et al., arXiv 2509.05165; NVIDIA/kvpress KVComposePress, whose defaults these are.
#include <algorithm>
#include <functional>
#include <numeric>

#include "sim/base/error.h"
#include "sim/policies/shared/one_list.h"
#include "sim/policies/shared/replay_scores.h"

namespace kvspan::policies {
namespace {

class WithMeanOfHeads final : public ReplayScores {
 public:
  using ReplayScores::ReplayScores;
  double score(const View& view, int head, std::span<const TokenIndex> entries,
               std::span<double> out) override {
    const auto columns = known(view, entries);
    const auto heads = static_cast<double>(columns->size());
    for (std::size_t i = 0; i < entries.size(); ++i) {
      double sum = 0;
      for (const std::vector<double>& of_head : *columns) sum += of_head[index(entries[i])];
      out[i] = (*columns)[index(view.shape().kv_head(head))][index(entries[i])] + sum / heads;
    }
    round_sums(out);
    return 0;
  }
};

// Mean over the heads of their r-th best scores. [entries of a head]
std::vector<double> composites(const LayerShow& layer) {
  std::vector<double> out(layer.scores.empty() ? 0 : layer.scores[0].size(), 0.0);
  for (std::vector<double> scores : layer.scores) {
    std::ranges::sort(scores, std::greater<>());
    for (std::size_t r = 0; r < out.size(); ++r)
      out[r] += scores[r] / static_cast<double>(layer.scores.size());
  }
  return out;
}

class Composite final : public ModelBudget {
 public:
  explicit Composite(bool even) : even_(even) {}
  TokenCount capacity(const LayerShape& shape, int /*head*/, const Sizing& sizing) const override {
    if (sizing.tokens == kAll || even_) return sizing.tokens;
    return sizing.tokens * shape.layers;
  }

  kvspan::Shares share_out(std::span<const LayerShow> layers, const Sizing& sizing) const override {
    std::vector<std::vector<double>> of_layers;
    for (const LayerShow& layer : layers) of_layers.push_back(composites(layer));
    std::vector<double> most = of_layers.front();
    for (const std::vector<double>& layer : of_layers) {
      for (std::size_t r = 0; r < layer.size(); ++r) most[r] = std::max(most[r], layer[r]);
    }
    of_layers.front() = most;
    std::vector<TokenIndex> ranks(most.size());
    std::iota(ranks.begin(), ranks.end(), TokenIndex{0});
    std::vector<Contender> contenders;
    TokenCount places = 0;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      contenders.push_back({ranks, of_layers[l]});
      places += std::max<TokenCount>(0, sizing.tokens - layers[l].protected_.front());
    }
    const std::vector<TokenCount> count = among_best(contenders, places);
    kvspan::Shares out;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const TokenCount held = layers[l].protected_.front();
      out.emplace_back(layers[l].scores.size(),
                       held >= sizing.tokens ? sizing.tokens : held + count[l]);
    }
    return out;
  }

 private:
  bool even_;
};

// The rows that kvcompose wants. Errors: ConfigError.
void require_whole_context(const ReplaySettings& settings) {
  const Probe& first = settings.probes.front();
  if (settings.probes.size() == 1 && first.begin == 0 && first.end == first.at) return;
  throw ConfigError(
      "kvcompose reads the whole context again in one pass; expected a trace of kvspan capture "
      "--replay --replay-as context");
}

}  // namespace

PolicyEntry kvcompose() {
  PolicyEntry entry;
  entry.name = "kvcompose";
  entry.kind = MethodKind::layer_budget;
  entry.summary = "layers share a budget by composite tokens, the r-th best entries of their heads";
  entry.source = "Akulov et al. 2025, arXiv 2509.05165; code NVIDIA/kvpress";
  entry.evidence = "code read (kvpress)";
  entry.differs =
      "kvpress counts int(share x layers x tokens), where a share is rounded down for each head "
      "here";
  entry.needs = "q, k and replayed rows (kvspan capture --replay --replay-as context)";
  entry.needs_file = true;
  entry.parameters = {budget_parameter("20%", "entries kept per layer and KV head, on average"),
                      {.name = "form",
                       .kind = Parameter::Kind::word,
                       .fallback = "layers",
                       .help = "what shares the budget: layers, or heads by themselves",
                       .choices = {"layers", "heads"}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    ReplaySettings settings{.policy = "kvcompose", .of_model = true, .group = Group::mean};
    settings.at = geometry.evict_point;
    RowIndex rows = geometry.evict_point;
    if (geometry.trace != nullptr) {
      rows = read_replay(geometry, settings);
      require_whole_context(settings);
    }
    Scoring scoring;
    scoring.make = [settings, geometry](const LayerShape&) {
      return std::make_unique<WithMeanOfHeads>(settings, geometry);
    };
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    recipe.protect = own(protect_recent(geometry.evict_point - settings.at));
    charge_replay(recipe, geometry, rows);
    if (arguments.is("form", "heads")) {
      share_out_by_one_ranking(recipe, geometry, 0, Over::model);
    } else {
      recipe.shape = own(std::make_shared<Composite>(geometry.trace == nullptr));
      charge_shown_scores(recipe, geometry, geometry.evict_point);
      if (geometry.trace == nullptr) {
        recipe.notes.emplace_back(
            "the prompt decides how layers share the budget; evenly here, which gives its sum");
      }
    }
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
