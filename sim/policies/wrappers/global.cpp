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
#include "sim/policies/shared/one_list.h"
#include "sim/policies/shared/wrapping.h"

namespace kvspan::policies {

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
    share_out_by_one_ranking(inner, geometry, arguments.real("alpha"), Over::model);
    inner.shape.owner = arguments.policy();
    inner.terms = wrapped_terms(inner, arguments);
    return inner;
  };
  return entry;
}

}  // namespace kvspan::policies
