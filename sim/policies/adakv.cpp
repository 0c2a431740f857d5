// SPDX-License-Identifier: Apache-2.0
// Ada-KV: the budget of a layer is shared out among its heads by the scores of this prompt. All
// heads' candidates compete in one list; a head gets as many places as it has candidates among the
// best heads * base of it, moved towards the uniform base by a safeguard.
//
//   form=code     base b = B - window; c_h = candidates of head h among the best H b of the layer;
//                 head h keeps round(c_h (1 - alpha) + floor(alpha b)) + window (so up to H/2 more
//                 or fewer than H B entries a layer, less what the floor cuts off); a prompt of B
//                 tokens is compressed, too, and may lose an entry a head to the rounding
//   form=kvpress  the best max(1, int(alpha B)) of every head are safe (window entries come
//                 first), then the lowest of the layer leave until H B are left
//
// Ties in the list go to the lower token, then to the lower head. `adakv` is a budget shape, and
// brings SnapKV's votes to run alone; adakv+other(...) shapes another policy's scores, and
// pyramid+adakv is Ada-PyramidKV: every layer shares out what PyramidKV gives it.
// Source: Feng et al., arXiv 2407.11550; code FFY0/AdaKV (window 32, kernel 7, max; alpha 0.2 in
// its LongBench scripts, 0.5 in its quick start) and NVIDIA/kvpress AdaKVPress, which masks keys
// and frees none of them: here they leave in both forms. Heads of uneven length are stored one
// after the other, with 4 bytes of length a head; the layouts show what padding them would cost.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/one_list.h"

namespace kvspan::policies {
namespace {

class AcrossHeads final : public Budget {
 public:
  struct Settings {
    double alpha;
    bool normalize;
    bool kvpress;
    int skip;   // the model's first layers share out nothing
    bool even;  // no trace to share out by: the heads' sum, up to rounding
  };
  explicit AcrossHeads(const Settings& settings) : settings_(settings) {}

  bool content_free() const override { return false; }
  bool within_layer() const override { return true; }

  // One head may take what all heads of the layer have.
  TokenCount capacity(const LayerShape& shape, int /*head*/, const Sizing& sizing) const override {
    if (sizing.tokens == kAll || shape.model_layer < settings_.skip || settings_.even)
      return sizing.tokens;
    return (sizing.tokens - sizing.discount) * shape.heads + sizing.discount;
  }

  void counts(const View& view, const Scores& scores, const Sizing& sizing,
              std::span<TokenCount> keep) const override {
    const TokenCount budget = sizing.tokens == kAll ? kAll : sizing.tokens - sizing.discount;
    std::fill(keep.begin(), keep.end(), budget);
    if (budget == kAll || view.shape().model_layer < settings_.skip) return;
    TokenCount places = 0;  // of the layer, H * b
    TokenCount candidates = 0;
    for (std::size_t h = 0; h < keep.size(); ++h) {
      places += std::max<TokenCount>(0, budget - scores.protected_[h]);
      candidates += static_cast<TokenCount>(scores.values[h].size());
    }
    // Nothing to share out; a window may still exceed the budget.
    if (settings_.kvpress ? candidates <= places : candidates < places) {
      for (std::size_t h = 0; h < keep.size(); ++h)
        keep[h] = scores.protected_[h] > budget ? budget : kAll;
      return;
    }
    std::vector<TokenCount> safe(keep.size(), 0);
    if (settings_.kvpress && settings_.alpha > 0) {
      const auto least = std::max<TokenCount>(
          1, static_cast<TokenCount>(static_cast<double>(budget) * settings_.alpha));
      for (std::size_t h = 0; h < keep.size(); ++h) {
        safe[h] = std::clamp<TokenCount>(least - scores.protected_[h], 0,
                                         static_cast<TokenCount>(scores.values[h].size()));
      }
    }
    std::vector<Contender> heads;
    for (std::size_t h = 0; h < keep.size(); ++h) {
      const double weight =
          settings_.normalize ? top_share(scores.values[h], budget - scores.protected_[h]) : 1.0;
      heads.push_back({scores.entries[h], scores.values[h], safe[h], weight});
    }
    const std::vector<TokenCount> count = among_best(heads, places);
    for (std::size_t h = 0; h < keep.size(); ++h) {
      if (scores.protected_[h] >= budget) continue;  // the newest of the window
      TokenCount own = count[h];
      if (!settings_.kvpress) {
        const auto base = static_cast<double>(budget - scores.protected_[h]);
        own = std::llrint(static_cast<double>(count[h]) * (1 - settings_.alpha) +
                          std::floor(settings_.alpha * base));
      }
      keep[h] = scores.protected_[h] + own;
    }
  }

 private:
  // Share of a head's scores that its best `base` hold.
  static double top_share(std::vector<double> values, TokenCount base) {
    const double sum = std::accumulate(values.begin(), values.end(), 0.0);
    if (!(sum > 0)) return 1;
    std::sort(values.begin(), values.end(), std::greater<>());
    const auto top = std::clamp<TokenCount>(base, 0, static_cast<TokenCount>(values.size()));
    return std::accumulate(values.begin(), values.begin() + top, 0.0) / sum;
  }

  Settings settings_;
};

}  // namespace

PolicyEntry adakv() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "adakv";
  entry.kind = MethodKind::head_budget;
  entry.summary = "shares a layer's budget out among its heads by the scores of the prompt";
  entry.source = "Feng et al. 2024, arXiv 2407.11550";
  entry.evidence = "code read";
  entry.differs = "the authors' repository and kvpress allocate differently (form=code|kvpress)";
  entry.needs = "q and k, or probabilities of the last `window` prompt rows";
  entry.parameters = votes_parameters(32, 7);
  entry.parameters.insert(entry.parameters.begin(),
                          {budget_parameter(),
                           {.name = "alpha",
                            .kind = Kind::real,
                            .fallback = "0.2",
                            .help = "share of the base that every head is sure of",
                            .range = {0, 1}}});
  const std::vector<Parameter> more = {
      {.name = "normalize",
       .kind = Kind::flag,
       .fallback = "false",
       .help = "weigh a head's scores by the share that its best hold"},
      {.name = "skip",
       .fallback = "0",
       .unit = "layers",
       .help = "the model's first layers, shared evenly",
       .range = {0, 1e6}},
      {.name = "form",
       .kind = Kind::word,
       .fallback = "code",
       .help = "safeguard of the authors' code, or of kvpress",
       .choices = {"code", "kvpress"}}};
  entry.parameters.insert(entry.parameters.end(), more.begin(), more.end());
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const bool normalize = arguments.flag("normalize");
    const Scoring votes = votes_scoring(arguments);
    Recipe recipe = budgeted(arguments, geometry, by_default(votes));
    recipe.shape = own(std::make_shared<AcrossHeads>(AcrossHeads::Settings{
        arguments.real("alpha"), normalize, arguments.is("form", "kvpress"),
        static_cast<int>(arguments.count("skip")), geometry.trace == nullptr}));
    recipe.protect = by_default(protect_recent(arguments.count("window")));
    recipe.closed_form = false;
    if (geometry.trace == nullptr) {
      recipe.notes.emplace_back(
          "the prompt decides how heads share a layer's budget; evenly here, which gives its sum "
          "up "
          "to half an entry a head");
    }
    // The length of every head.
    recipe.charge.once = 4LL * geometry.layers() * geometry.shape(0, votes.per_query_head).heads;
    recipe.knob->monotone = !normalize;
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
