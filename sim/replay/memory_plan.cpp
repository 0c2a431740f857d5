// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/memory_plan.h"

#include <algorithm>

#include <tbb/task_arena.h>

#include "sim/attention/kernels.h"
#include "sim/replay/shared_work.h"

namespace kvspan {

using kernels::padded;

namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20U;
constexpr std::int64_t kBlockBytes = 3 * kMiB / 2;  // terms of a block: within a core's L2
constexpr RowIndex kFewestRows = 16;  // below this the key panels are not reused enough
constexpr RowIndex kMostRows = 64;
constexpr RowIndex kMostReadRows = 512;

RowIndex rows_per_block(const TraceMeta& meta, RowIndex wanted) {
  if (wanted > 0) return wanted;
  const std::int64_t row_bytes =
      padded(meta.tokens) * meta.query_heads * static_cast<std::int64_t>(sizeof(float));
  return std::clamp<RowIndex>(kBlockBytes / row_bytes, kFewestRows, kMostRows);
}

// Anonymous memory of one layer in flight, and of what stays until the end.
struct Parts {
  std::int64_t lane = 0, fixed = 0;
};

// What all policies share.
Parts shared_parts(const Trace& trace, bool values, RowIndex block_rows) {
  const TraceMeta& m = trace.meta();
  Parts out;
  out.fixed = 48 * kMiB + m.tokens * 8 * static_cast<std::int64_t>(m.layers);
  // Metrics look at one layer of one run at a time.
  out.fixed += m.tokens * 16 * m.query_heads;
  if (trace.is_qkv()) {
    out.lane += padded(m.tokens) * m.kv_heads * m.head_dim * 4 +
                std::int64_t{1024} * m.kv_heads * m.head_dim * 4;
    out.lane += block_rows * m.query_heads * m.head_dim * 8;
    if (values)
      out.lane +=
          m.tokens * m.kv_heads * m.v_head_dim * 4 + block_rows * m.query_heads * m.v_head_dim * 16;
  }
  out.lane += m.query_heads * block_rows * (row_stride(m.tokens) * 4 + 64);
  return out;
}

// What roles remember: vectors in fp32 (and their moments in double), and figures of rows.
std::int64_t role_bytes(const TraceMeta& m, const Policy& policy, const Needs& needs) {
  const std::int64_t keys = padded(m.tokens);
  std::int64_t out = policy.role_bytes;
  if (needs.q) out += m.query_heads * std::int64_t{m.head_dim} * (m.head_dim * 8 + 512);
  if (needs.k) out += keys * m.kv_heads * m.head_dim * 8;
  if (needs.v) out += keys * m.kv_heads * m.v_head_dim * 8;
  if (needs.observe == Observe::always) out += m.query_heads * keys * 64;
  return out;
}

std::int64_t lane_bytes(const TraceMeta& m, const Policy& policy, const Needs& needs, bool values,
                        RowIndex block_rows) {
  const std::int64_t keys = padded(m.tokens);
  const std::int64_t heads = policy.per_query_head ? m.query_heads : m.kv_heads;
  std::int64_t out = heads * keys * (4 + 4) + (needs.column_sums ? m.query_heads * keys * 8 : 0);
  if (selects(policy)) out += m.query_heads * keys * 8;
  out += role_bytes(m, policy, needs);
  if (values && (policy.alters_vectors || policy.renumbers)) {
    // K and V as they are held, and once more while they are handed over.
    out += 2 * keys * m.kv_heads * (m.head_dim + m.v_head_dim) * 4;
    // Logits of the rows of one head over them, and once more where positions move.
    out += 2 * block_rows * (m.query_heads / m.kv_heads) * keys * 4;
  }
  out += keys * 64 + m.query_heads * block_rows * (8 + 64);  // scratch rows, decisions
  if (values) out += m.query_heads * block_rows * m.v_head_dim * 8;
  return out;
}

// Ledger, timeline and what is measured of one policy.
std::int64_t result_bytes(const TraceMeta& m, const Policy& policy, const EngineOptions& options,
                          bool values, RowIndex prompt) {
  const std::int64_t heads = policy.per_query_head ? m.query_heads : m.kv_heads;
  const std::int64_t entries = std::int64_t{m.layers} * heads * m.tokens;
  std::int64_t out = entries * (options.keep_scores ? 12 : 4);
  const ReadsSample reads = sample_of_reads(m, policy, options);
  out += reads.rows * reads.row_bytes;
  if (policy.reads_lower_layers) out += entries * 32;
  // What all layers show to a budget that they share, and the ledger of that survey.
  if (coupled_rule(policy)) out += entries * (8 + 4 + 4);
  out += m.tokens * (8 * 5 + 8 * 4);  // pass ends, timeline, row mass
  if (options.fidelity) {
    const auto measured = [](RowIndex asked, RowIndex rows) {
      return asked > 0 ? std::min(asked, rows) : rows;
    };
    const std::int64_t rows = measured(options.prompt_rows_measured(prompt), prompt) +
                              measured(options.fidelity_rows, m.tokens - prompt);
    const std::int64_t cells = std::int64_t{m.layers} * m.query_heads * rows;
    // Percentiles: values of each of two phases, doubled while a vector grows.
    out += std::min<std::int64_t>(cells, std::int64_t{1} << 25U) * 4 * 2 * (values ? 2 : 1);
  }
  return out;
}

// Of a score pass on the CPU; one on a device needs less here. It has the layer's keys and values,
// 32 rows, and who is there under each vector: of each policy, and of each span under it.
std::int64_t score_pass_bytes(const Trace& trace, const std::vector<Policy>& policies,
                              bool values) {
  const TraceMeta& m = trace.meta();
  std::int64_t heads = 0;
  for (const Policy& policy : policies) {
    if (holds_plainly(policy)) heads += policy.per_query_head ? m.query_heads : m.kv_heads;
  }
  return shared_parts(trace, values, 32).lane +
         heads * (1 + std::ssize(m.spans)) * padded(m.tokens) * 12;
}

Parts memory_parts(const Trace& trace, const Lineup& lineup, const EngineOptions& options,
                   RowIndex block_rows) {
  const TraceMeta& m = trace.meta();
  const bool values = wants_values(trace, options);
  Parts out = shared_parts(trace, values, block_rows);
  for (std::size_t p = 0; p < lineup.policies.size(); ++p) {
    const Policy& policy = lineup.policies[p];
    out.lane += lane_bytes(m, policy, lineup.requirements[p].needs, values, block_rows);
    if (options.fidelity) out.lane += m.tokens * 8;
    out.fixed += result_bytes(m, policy, options, values, lineup.geometry.prompt);
  }
  const auto sums = [](const Requirements& asked) { return asked.needs.column_sums; };
  if (std::any_of(lineup.requirements.begin(), lineup.requirements.end(), sums))
    out.lane += m.query_heads * padded(m.tokens) * (8 + 4);
  if (options.scores != nullptr && options.fidelity && trace.is_qkv())
    out.lane += score_pass_bytes(trace, lineup.policies, values);
  out.lane += SharedScores(shared_rankings(lineup.policies)).rankings() * m.query_heads *
              padded(m.tokens) * 8;
  return out;
}

}  // namespace

std::int64_t live_lane_bytes(const TraceMeta& meta, const Policy& policy, const Needs& needs,
                             RowIndex prompt) {
  const EngineOptions options;
  return meta.layers * (lane_bytes(meta, policy, needs, true, 1) + meta.tokens * 8) +
         result_bytes(meta, policy, options, true, prompt);
}

int threads_of(const EngineOptions& options) {
  return options.threads > 0 ? options.threads : tbb::this_task_arena::max_concurrency();
}

bool wants_values(const Trace& trace, const EngineOptions& options) {
  return options.fidelity && options.output_error && trace.is_qkv() && trace.has_v();
}

std::int64_t row_stride(std::int64_t tokens) {
  return padded(tokens) + (padded(tokens) % 1024 == 0 ? kernels::kPanel : 0);
}

bool selects(const Policy& policy) { return policy.selector || policy.prefill_reads; }

ReadsSample sample_of_reads(const TraceMeta& meta, const Policy& policy,
                            const EngineOptions& options) {
  if (!selects(policy)) return {};
  const std::int64_t heads = policy.per_query_head ? meta.query_heads : meta.kv_heads;
  const std::int64_t row_bytes = meta.layers * heads * ((meta.tokens + 7) / 8);
  return {row_bytes, std::min({kMostReadRows, meta.tokens,
                               std::max<std::int64_t>(0, options.keep_reads) / row_bytes})};
}

MemoryPlan plan_memory(const Trace& trace, const Lineup& lineup, const EngineOptions& options) {
  MemoryPlan plan;
  plan.block_rows = rows_per_block(trace.meta(), options.block_rows);
  const Parts parts = memory_parts(trace, lineup, options, plan.block_rows);
  // More layers in flight only help while there are threads without a policy to work on.
  const std::int64_t most =
      std::max<std::int64_t>(1, (std::int64_t{4} << 30U) / std::max<std::int64_t>(1, parts.lane));
  plan.layers_in_flight = static_cast<int>(std::clamp<std::int64_t>(
      std::min<std::int64_t>(threads_of(options), trace.meta().layers), 1, most));
  // Whoever reuses the decisions of lower layers needs them finished.
  if (std::any_of(lineup.policies.begin(), lineup.policies.end(),
                  [](const Policy& policy) { return policy.reads_lower_layers; })) {
    plan.layers_in_flight = 1;
  }
  // Each thread has a stack and an allocator cache.
  plan.bytes = parts.fixed + plan.layers_in_flight * parts.lane + 4 * kMiB * threads_of(options);
  return plan;
}

MemoryPlan plan_memory(const Trace& trace, const std::vector<Policy>& policies,
                       const EngineOptions& options) {
  return plan_memory(trace, line_up(trace, geometry_of(trace, options), policies), options);
}

}  // namespace kvspan
