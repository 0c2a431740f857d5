// SPDX-License-Identifier: Apache-2.0
// Expected attention: treats the coming queries of a head as normally distributed, with the mean
// and covariance of the prompt's queries before rotation, rotated to the average of the next
// `future` positions. The expected weight of key j is exp(a mu.k + a^2/2 k'Sigma k), normalised
// over the candidates; mean over the group, plus epsilon, times ||v||.
// Source: Devoto et al., arXiv 2510.00636; kvpress ExpectedAttentionPress, whose defaults these
// are. Queries before rotation are not in a trace: they are rotated back. A trace that says nothing
// about rotation is taken as it is, and a note says so. Logit soft-capping is not modelled, as
// there.
#include "sim/policies/expected_attention_rule.h"
#include "sim/policies/shared/helpers.h"
#include "sim/policies/shared/trace_reads.h"

namespace kvspan::policies {
PolicyEntry expected_attention() {
  using Kind = Parameter::Kind;
  PolicyEntry entry;
  entry.name = "expected_attention";
  entry.kind = MethodKind::post_fill_eviction;
  entry.summary = "keeps what queries like the prompt's are expected to attend to later";
  entry.source = "Devoto et al. 2025, arXiv 2510.00636; code NVIDIA/kvpress";
  entry.evidence = "code read";
  entry.needs = "q, k and v; the rope_* fields where the model rotates q and k";
  entry.parameters = {
      budget_parameter(),
      {.name = "sinks", .fallback = "4", .unit = "tokens", .help = "first tokens, always kept"},
      future_parameter(),
      {.name = "covariance",
       .kind = Kind::flag,
       .fallback = "true",
       .help = "uses the second moment"},
      {.name = "vnorm",
       .kind = Kind::flag,
       .fallback = "true",
       .help = "times the norm of the value"},
      {.name = "epsilon",
       .kind = Kind::real,
       .fallback = "0",
       .help = "added before that product",
       .range = {0, 1e6}}};
  entry.make = [](Arguments& arguments, const Geometry& geometry) {
    const Expected::Settings settings{arguments.count("sinks"), arguments.count("future"),
                                      arguments.flag("covariance"), arguments.flag("vnorm"),
                                      arguments.real("epsilon")};
    Scoring scoring;
    scoring.make = [settings](const LayerShape& shape) {
      return std::make_unique<Expected>(settings, shape);
    };
    scoring.sharing = Sharing::once;  // sums over queries are cut where it is asked
    Recipe recipe = budgeted(arguments, geometry, own(scoring));
    recipe.protect = own(ProtectRule([sinks = settings.sinks](TokenCount) {
      return Protect{sinks, 0};
    }));
    // Mean and covariance in fp32 of every query head, while the prompt's end is decided.
    const std::int64_t d = geometry.k_dim;
    const std::int64_t moments = std::int64_t{geometry.layers()} * geometry.query_heads *
                                 (d + (settings.covariance ? d * d : 0)) * 4;
    recipe.charge.during = [moments, last = geometry.evict_point - 1](RowIndex row) {
      return row == last ? moments : 0;
    };
    if (geometry.trace != nullptr && geometry.trace->is_qkv() && !geometry.trace->meta().rope)
      recipe.notes.emplace_back("the trace has no rope_* fields: queries are taken as unrotated");
    return recipe;
  };
  return entry;
}

}  // namespace kvspan::policies
