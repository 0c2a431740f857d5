// SPDX-License-Identifier: Apache-2.0
// global(policy): one ranking over all heads of all layers. Together they may keep heads x layers
// times the policy's budget: what each head protects comes first, and the best of all other entries
// fill the places that are left; in decode, a policy that acts there keeps every head at what it
// got. alpha: the best alpha x budget of every head are in, whatever they score (0: no safeguard).
// Only stored layers share. Ties go to the lower token, then to the lower layer, then head.
// Source: the cut of KVzip, arXiv 2505.23416 (kvpress KVzipPress, layerwise=False: the lowest
// scores of the model leave, "does not rely on safeguards"), of Fast KVzip, arXiv 2601.17668, and
// of KVCompose's unstructured form; the safeguard is AdaKVPress'. Scores of layers are compared as
// they are: a policy should rank by numbers that mean the same in each of them. Heads of uneven
// length are stored one after the other, with 4 bytes of length a head.
#include <algorithm>

#include "sim/policies/shared/one_list.h"
#include "sim/policies/shared/wrapping.h"

namespace kvspan::policies {
namespace {

class OneRanking final : public ModelBudget {
 public:
  OneRanking(double alpha, bool even) : alpha_(alpha), even_(even) {}

  // One head may take what all have; evenly where no trace says more.
  TokenCount capacity(const LayerShape& shape, int /*head*/, const Sizing& sizing) const override {
    if (sizing.tokens == kAll || even_) return sizing.tokens;
    return sizing.tokens * shape.heads * shape.layers;
  }

  Shares share_out(std::span<const LayerShow> layers, const Sizing& sizing) const override {
    const TokenCount budget = sizing.tokens;
    std::vector<Contender> heads;
    TokenCount places = 0;
    for (const LayerShow& layer : layers) {
      for (std::size_t h = 0; h < layer.scores.size(); ++h) {
        const TokenCount left = std::max<TokenCount>(0, budget - layer.protected_[h]);
        const auto sure = static_cast<TokenCount>(static_cast<double>(budget) * alpha_);
        places += left;
        heads.push_back(
            {layer.tokens[h], layer.scores[h],
             std::clamp<TokenCount>(sure - layer.protected_[h], 0, std::ssize(layer.scores[h]))});
      }
    }
    const std::vector<TokenCount> count = among_best(heads, places);
    Shares out;
    for (std::size_t next = 0; const LayerShow& layer : layers) {
      std::vector<TokenCount>& keep = out.emplace_back();
      for (const TokenCount safe : layer.protected_) {
        keep.push_back(safe >= budget ? budget : safe + count[next]);  // else the newest of these
        ++next;
      }
    }
    return out;
  }

 private:
  double alpha_;
  bool even_;
};

}  // namespace

PolicyEntry global() {
  PolicyEntry entry;
  entry.name = "global";
  entry.kind = MethodKind::wrapper;
  entry.summary = "one ranking over all heads of all layers, once, at the prompt's end";
  entry.source = "Kim et al. 2025, arXiv 2505.23416 (the cut of KVzip); code NVIDIA/kvpress";
  entry.evidence = "code read (kvpress)";
  entry.differs =
      "kvpress counts what leaves, int(ratio x all entries), where a share is rounded down for "
      "each "
      "head here; it masks keys and frees none of them";
  entry.needs = "what the inner policy needs";
  entry.wrapper = true;
  entry.parameters = {{.name = "alpha",
                       .kind = Parameter::Kind::real,
                       .fallback = "0",
                       .help = "share of the budget that every head is sure of",
                       .range = {0, 1}}};
  entry.wrap = [](Arguments& arguments, const Geometry& geometry, Recipe inner) {
    require_ranking(arguments, inner);
    if (!inner.size) refuse(arguments, inner, fmt::format("{} has no budget", inner.name));
    if (inner.shape.is_own() || inner.layers.is_own()) {
      refuse(arguments, inner,
             fmt::format("{} shares out a budget itself",
                         inner.shape.is_own() ? inner.shape.owner : inner.layers.owner));
    }
    inner.shape = own_of<std::shared_ptr<const Budget>>(
        arguments,
        std::make_shared<OneRanking>(arguments.real("alpha"), geometry.trace == nullptr));
    if (geometry.trace == nullptr) {
      inner.notes.emplace_back(
          "the prompt decides how layers and heads share the budget; evenly here, which gives its "
          "sum");
    }
    const int heads = geometry.shape(0, inner.scorer.value.per_query_head).heads;
    inner.charge.once += 4LL * geometry.layers() * heads;
    // Who keeps a number an entry has its scores already.
    if (inner.charge.entry == 0) charge_shown_scores(inner, geometry, geometry.evict_point);
    inner.terms = wrapped_terms(inner, arguments);
    return inner;
  };
  return entry;
}

}  // namespace kvspan::policies
