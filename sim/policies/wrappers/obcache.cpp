// SPDX-License-Identifier: Apache-2.0
// obcache(policy): a policy that adds up rows of attention adds up what the rows' outputs would
// lose. With p and z the probability and the logit that a row gives to an entry with value v, and o
// the row's output, an entry counts, per row and query head,
//   prune=value   p^2 ||v||^2                       its value zeroed
//   prune=key     (p z)^2 ||v - o||^2               its key zeroed, to second order
//   prune=joint   ||p v + p z (v - o)||^2           both
// in place of p, before the policy's own sums, means over heads, pooling, windows and sets.
// Source: Gu et al., arXiv 2510.07651 (Optimal Brain Cache); code MalachiAjayi/kv-cache-pruner, a
// renamed copy of the authors' DreamSoul-AI/OBCache (cache_utils.py: obcV, obcK, obcVK round H2O,
// TOVA and SnapKV's pooling). There query heads have entries of their own, H2O's sums begin with
// the prompt's last rows (as many as are protected) and go on in decode; here the policy says.
// Charged beside a policy's own sums, fp32: the lengths of values, and a second sum for joint.
#include "sim/policies/shared/wrapping.h"
#include "sim/policies/wrappers/obcache_rule.h"

namespace kvspan::policies {
namespace {

void require_attention_alone(const Arguments& arguments, const Recipe& inner, const Needs& needs) {
  const bool rows = needs.last_rows > 0 || needs.column_sums;
  if (rows && !needs.q && !needs.k && !needs.v && needs.observe == Observe::never) return;
  refuse(arguments, inner,
         fmt::format("{} does not rank by sums of attention alone, as h2o, tova and snapkv do",
                     inner.name));
}

}  // namespace

PolicyEntry obcache() {
  PolicyEntry entry;
  entry.name = "obcache";
  entry.kind = MethodKind::wrapper;
  entry.summary = "adds up what outputs would lose without an entry, where a policy adds attention";
  entry.source =
      "Gu et al. 2025, arXiv 2510.07651; code MalachiAjayi/kv-cache-pruner (a copy of "
      "DreamSoul-AI/OBCache)";
  entry.evidence = "code read (a renamed copy of the authors')";
  entry.differs =
      "the code keeps one set per query head and lets H2O's sums begin with the prompt's last "
      "rows; here sums, groups and windows are the inner policy's";
  entry.needs = "what the inner policy needs, and q, k and v";
  entry.wrapper = true;
  entry.parameters = {{.name = "prune",
                       .kind = Parameter::Kind::word,
                       .fallback = "joint",
                       .help = "what of an entry would be zeroed",
                       .choices = {"joint", "value", "key"}}};
  entry.wrap = [](Arguments& arguments, const Geometry& geometry, Recipe inner) {
    require_ranking(arguments, inner);
    const Needs needs = needs_of(inner, geometry);
    require_attention_alone(arguments, inner, needs);
    if (!inner.more_rules.empty())
      refuse(arguments, inner, fmt::format("{} ranks by more than one rule", inner.name));
    const Zeroed zeroed = arguments.is("prune", "value") ? Zeroed::value
                          : arguments.is("prune", "key") ? Zeroed::key
                                                         : Zeroed::both;
    Scoring& scoring = inner.scorer.value;
    scoring.make = [make = scoring.make, zeroed](const LayerShape& shape) {
      return std::make_unique<Perturbations>(make(shape), zeroed, shape);
    };
    scoring.sharing = Sharing::none;
    scoring.row_by_row = true;
    if (scoring.evicts_in_decode && zeroed != Zeroed::key) {
      inner.charge.entry += 4;
      if (needs.column_sums && zeroed == Zeroed::both) inner.charge.entry += 4;
    }
    inner.terms = wrapped_terms(inner, arguments);
    return inner;
  };
  return entry;
}

}  // namespace kvspan::policies
