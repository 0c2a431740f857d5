// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/requirements.h"

#include <algorithm>

#include <fmt/format.h>

#include "sim/base/error.h"
#include "sim/policy/layer_policy.h"
#include "sim/policy/memo.h"

namespace kvspan {
namespace {

// The field that is lacking, and why it is needed.
struct Lack {
  std::string field, why;
};

bool any_rule(const Policy& policy, bool (*is)(const Rule&)) {
  return std::any_of(policy.rules.begin(), policy.rules.end(), is);
}

// Column sums in the file stand for the prompt's rows, if they are of these passes.
std::optional<Lack> column_mass_lack(const Trace& trace, const Policy& policy, const PassPlan& plan,
                                     int layer) {
  std::vector<std::int64_t> prefill;
  for (const RowIndex end : plan.ends) {
    if (end <= plan.prompt) prefill.push_back(end);
  }
  if (!std::ranges::equal(prefill, trace.meta().passes)) {
    return Lack{fmt::format("layers.{}.scores.column_mass for these passes", layer),
                fmt::format("its `passes` differ from the {} prefill passes of this run; use the "
                            "--chunk of the capture",
                            prefill.size())};
  }
  if (prefill.size() > 1 &&
      any_rule(policy, [](const Rule& r) { return r.schedule.every_chunk; })) {
    return Lack{fmt::format("layers.{}.scores of all prompt rows", layer),
                "column_mass holds the full cache's sums only"};
  }
  return std::nullopt;
}

// Of a score trace: rows that the capture left out.
std::optional<Lack> row_lack(const Trace& trace, const Policy& policy, const Requirements& asked) {
  const PassPlan& plan = asked.passes;
  std::vector<char> observed(static_cast<std::size_t>(plan.tokens), 0);
  for (const RowRange& rows : asked.observed)
    std::fill(observed.begin() + rows.begin, observed.begin() + rows.end, 1);
  for (int l = 0; l < trace.meta().layers; ++l) {
    const ScoreLayer& scores = trace.scores(l);
    const bool sums_in_file = asked.needs.column_sums && scores.column_mass != nullptr;
    if (sums_in_file) {
      if (auto lack = column_mass_lack(trace, policy, plan, l)) return lack;
    }
    for (RowIndex row = sums_in_file ? plan.prompt : 0; row < plan.tokens; ++row) {
      if (observed[static_cast<std::size_t>(row)] == 0) continue;
      if (!std::binary_search(scores.rows.begin(), scores.rows.end(), row)) {
        return Lack{fmt::format("row {} in layers.{}.scores.rows", row, l),
                    "the capture left it out"};
      }
    }
  }
  return std::nullopt;
}

std::optional<Lack> lack_of(const Trace& trace, const Policy& policy, const Requirements& asked) {
  const Needs& needs = asked.needs;
  if (trace.is_qkv()) {
    if (needs.v && !trace.has_v()) return Lack{"layers.*.v", "no values"};
    if ((needs.rope || policy.renumbers) && !trace.meta().rope)
      return Lack{"the rope_* fields", "keys cannot be rotated"};
    return std::nullopt;
  }
  const bool probes = any_rule(policy, [](const Rule& r) { return r.probe_with_prompt_tail; });
  if (needs.q || needs.k || needs.v || probes)
    return Lack{"layers.*.q and layers.*.k", "a score trace"};
  return row_lack(trace, policy, asked);
}

}  // namespace

Geometry geometry_of(const Trace& trace, const EngineOptions& options) {
  const TraceMeta& m = trace.meta();
  if (m.tokens >= std::int64_t{1} << 31U) {
    throw TraceError(
        fmt::format("{}: {} tokens, at most 2^31 - 1 can be replayed", trace.name(), m.tokens));
  }
  Geometry g;
  g.model_layers = m.model_layers;
  g.layer_ids = m.layer_ids;
  g.query_heads = m.query_heads;
  g.kv_heads = m.kv_heads;
  g.k_dim = m.head_dim;
  g.v_dim = m.v_head_dim;
  g.tokens = m.tokens;
  g.prompt = options.prompt > 0 ? options.prompt : m.prompt_tokens;
  g.evict_point = options.evict_point > 0 ? options.evict_point : g.prompt;
  g.chunk = options.chunk;
  g.kv_bytes = options.kv_bytes;
  g.seed = options.seed;
  if (std::any_of(m.sliding_window.begin(), m.sliding_window.end(),
                  [](std::int64_t w) { return w > 0; })) {
    g.sliding_window = m.sliding_window;
  }
  g.trace = &trace;
  g.memo = std::make_shared<Memo>();
  (void)make_passes(g.tokens, g.prompt, g.evict_point, g.chunk);  // checks them
  return g;
}

Requirements requirements_of(const Policy& policy, const Geometry& geometry) {
  Requirements out;
  out.passes = passes_of(policy, geometry);
  const RowIndex tokens = geometry.tokens;
  // The last layer: a policy may leave the model's first layers alone.
  const LayerPolicy driver(policy, geometry.shape(geometry.layers() - 1, policy.per_query_head));
  out.needs = driver.needs();
  out.changes_from = tokens;
  if (policy.selector) out.changes_from = out.passes.evict_point;
  if (policy.prefill_reads) out.changes_from = 0;
  const auto observe = [&](RowIndex begin, RowIndex end) {
    if (begin >= end) return;
    if (!out.observed.empty() && begin <= out.observed.back().end &&
        begin >= out.observed.back().begin) {
      out.observed.back().end = std::max(out.observed.back().end, end);
    } else {
      out.observed.push_back({begin, end});
    }
  };
  if (out.needs.column_sums || out.needs.observe == Observe::always) observe(0, tokens);
  if (out.needs.observe == Observe::from_prompt_end) observe(out.passes.evict_point - 1, tokens);
  for (std::size_t i = 0; i < out.passes.ends.size(); ++i) {
    const Pass pass = pass_at(out.passes, i);
    if (pass.end == tokens) break;
    if (!driver.due(pass)) continue;
    out.changes_from = std::min(out.changes_from, pass.end);
    observe(pass.end - std::min(driver.rows_observed(pass), pass.end), pass.end);
  }
  return out;
}

std::optional<std::string> why_not(const Trace& trace, const Policy& policy,
                                   const Requirements& asked) {
  const std::optional<Lack> lack = lack_of(trace, policy, asked);
  if (!lack) return std::nullopt;
  return fmt::format("{} cannot run on {}: it needs {}, and the trace lacks it ({})", policy.spec,
                     trace.name(), lack->field, lack->why);
}

Lineup Lineup::slice(std::size_t begin, std::size_t end) const {
  const auto part = [&](const auto& all) {
    return std::vector(all.begin() + static_cast<std::ptrdiff_t>(begin),
                       all.begin() + static_cast<std::ptrdiff_t>(end));
  };
  return {geometry, part(policies), part(requirements)};
}

Lineup line_up(const Trace& trace, const Geometry& geometry, std::vector<Policy> policies) {
  Lineup out{geometry, std::move(policies), {}};
  for (const Policy& policy : out.policies) {
    out.requirements.push_back(requirements_of(policy, geometry));
    if (const auto reason = why_not(trace, policy, out.requirements.back()))
      throw TraceError(*reason);
  }
  return out;
}

}  // namespace kvspan
