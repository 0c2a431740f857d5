// SPDX-License-Identifier: Apache-2.0
// dms(policy): the policy's score becomes an admission. An entry dies at the end of the first pass
// after which it is no longer among the newest `window` tokens, if its score is below `threshold`.
// Heads keep as many as pass, so there is no budget.
// Source: kvpress DMSPress, after Lancucki et al., arXiv 2506.05345, where the gate is learned:
// here it is the score of a policy that knows it when the entry is born (knorm: minus the norm of
// the key;
// random: uniform in [0, 2^53); scores(file=...): a gate's own output).
#include <cmath>
#include <limits>

#include "sim/policies/shared/wrapping.h"

namespace kvspan::policies {

PolicyEntry dms() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "dms";
  entry.kind = MethodKind::wrapper;
  entry.summary =
      "drops entries whose score at birth is below a threshold once they leave a window";
  entry.source = "NVIDIA/kvpress, DMSPress; after Lancucki et al. 2025, arXiv 2506.05345";
  entry.evidence = "code read";
  entry.differs = "kvpress masks and frees nothing; here entries leave";
  entry.needs = "what the inner policy needs";
  entry.wrapper = true;
  entry.parameters = {{.name = "threshold",
                       .kind = Kind::real,
                       .unit = "of the score",
                       .help = "entries below it die",
                       .range = {-1e300, 1e300}},
                      {.name = "window",
                       .fallback = "128",
                       .unit = "tokens",
                       .help = "newest tokens, not judged yet"}};
  entry.wrap = [](Arguments& arguments, const Geometry& geometry, Recipe inner) {
    require_ranking(arguments, inner);
    const Scoring scoring = inner.scorer.value;
    if (!scoring.at_birth) {
      refuse(arguments, inner,
             fmt::format("the score of {} is not known when an entry is born; knorm, random and "
                         "scores are",
                         inner.name));
    }
    if (scoring.per_query_head) {
      refuse(
          arguments, inner,
          fmt::format("{} scores every query head, and admission is one per KV head", inner.name));
    }
    if (inner.admission)
      refuse(arguments, inner, fmt::format("{} admits entries already", inner.name));
    if (inner.shape && inner.shape.filling == Slot<std::shared_ptr<const Budget>>::Filling::own)
      refuse(arguments, inner,
             fmt::format("there is no budget for {} to spread", inner.shape.owner));
    if (inner.size.filling == Slot<Amount>::Filling::own)
      inner.notes.push_back(
          fmt::format("dms: the threshold stands in for the budget of {}", inner.size.owner));
    Admission admission;
    admission.make = scoring.make;
    // Admission drops what scores at most its threshold; here equality stays.
    admission.threshold =
        std::nextafter(arguments.real("threshold"), -std::numeric_limits<double>::infinity());
    admission.window = arguments.count("window");
    inner.terms = wrapped_terms(inner, arguments);
    inner.name = fmt::format("dms({})", inner.name);
    inner.admission = own_of(arguments, std::move(admission));
    inner.scorer = {};
    inner.size = {};
    inner.shape = {};
    inner.schedule = {};
    inner.protect = {};
    inner.pick = {};
    inner.knob.reset();
    // One bit per token of the window, in every layer and head.
    const std::int64_t window = std::min<std::int64_t>(arguments.count("window"), geometry.tokens);
    inner.charge.once += std::int64_t{geometry.layers()} * geometry.kv_heads * ((window + 7) / 8);
    return inner;
  };
  return entry;
}

}  // namespace kvspan::policies
