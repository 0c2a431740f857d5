// SPDX-License-Identifier: Apache-2.0
#include "sim/replay/engine.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <map>
#include <mutex>

#include <fmt/format.h>
#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "sim/attention/kernels.h"
#include "sim/base/error.h"
#include "sim/replay/lane.h"

namespace kvspan {
namespace {

using kernels::padded;

constexpr std::int64_t kBlockBytes = std::int64_t{3}
                                     << 19U;  // terms of a block: within a core's L2
constexpr RowIndex kFewestRows = 16;          // below this the key panels are not reused enough
constexpr RowIndex kMostRows = 64;
constexpr RowIndex kMostReadRows = 512;

// Rows a multiple of 4 KiB apart would fight for the same cache sets.
std::int64_t row_stride(std::int64_t tokens) {
  return padded(tokens) + (padded(tokens) % 1024 == 0 ? kernels::kPanel : 0);
}

bool wants_values(const Trace& trace, const EngineOptions& options) {
  return options.fidelity && options.output_error && trace.is_qkv() && trace.has_v();
}

int threads_of(const EngineOptions& options) {
  return options.threads > 0 ? options.threads : tbb::this_task_arena::max_concurrency();
}

// Everything of a run that does not depend on the layer.
struct Run {
  const Trace& trace;
  const std::vector<Policy>& policies;
  const EngineOptions& options;
  std::vector<PassPlan> plans;  // one a policy
  FidelityPlan fidelity;
  std::vector<char> needed;          // [tokens] somebody observes or measures the row
  std::vector<RowIndex> block_ends;  // ascending
  MemoryPlan memory;
};

LayerShape shape_of(const Trace& trace, int layer, bool per_query_head) {
  const TraceMeta& m = trace.meta();
  return {layer,         m.layers,   m.layer_ids[static_cast<std::size_t>(layer)], m.model_layers,
          m.query_heads, m.kv_heads, per_query_head ? m.query_heads : m.kv_heads,  m.head_dim,
          m.v_head_dim};
}

// Marks the rows that a policy observes; returns the first row at which its reads may differ from
// the full cache's.
RowIndex mark_observed(const Policy& policy, const PassPlan& plan, const Trace& trace,
                       std::vector<char>& needed) {
  // The last layer: a policy may leave the model's first layers alone.
  const LayerPolicy driver(policy, shape_of(trace, trace.meta().layers - 1, policy.per_query_head));
  const Needs needs = driver.needs();
  RowIndex changes_from = plan.tokens;
  if (policy.selector) changes_from = plan.evict_at;
  if (policy.prefill_reads) changes_from = 0;
  if (needs.column_sums || needs.observe == Observe::always)
    std::fill(needed.begin(), needed.end(), 1);
  if (needs.observe == Observe::from_prompt_end)
    std::fill(needed.begin() + (plan.evict_at - 1), needed.end(), 1);
  for (std::size_t i = 0; i < plan.ends.size(); ++i) {
    const Pass pass = pass_at(plan, i);
    if (pass.end == plan.tokens) break;
    if (!driver.due(pass)) continue;
    changes_from = std::min(changes_from, pass.end);
    const RowIndex rows = std::min(driver.rows_observed(pass), pass.end);
    std::fill(needed.begin() + (pass.end - rows), needed.begin() + pass.end, 1);
  }
  return changes_from;
}

// Errors: TraceError naming the field that a policy reads and the trace lacks.
void check_needs(const Policy& policy, const PassPlan& plan, const Trace& trace) {
  const LayerPolicy driver(policy, shape_of(trace, trace.meta().layers - 1, policy.per_query_head));
  const Needs needs = driver.needs();
  const auto lacks = [&](const std::string& field, const std::string& why) {
    throw TraceError(fmt::format("{} cannot run on {}: it needs {}, and the trace lacks it ({})",
                                 policy.spec, trace.name(), field, why));
  };
  const bool probes = std::any_of(policy.rules.begin(), policy.rules.end(),
                                  [](const Rule& r) { return r.probe_with_prompt_tail; });
  if (needs.v && trace.is_qkv() && !trace.has_v()) lacks("layers.*.v", "no values");
  if ((needs.rope || policy.renumbers) && trace.is_qkv() && !trace.meta().rope)
    lacks("the rope_* fields", "keys cannot be rotated");
  if (trace.is_qkv()) return;
  if (needs.q || needs.k || needs.v || probes) lacks("layers.*.q and layers.*.k", "a score trace");
  std::vector<char> observed(static_cast<std::size_t>(plan.tokens), 0);
  Policy without_sums = policy;
  (void)mark_observed(without_sums, plan, trace, observed);
  for (int l = 0; l < trace.meta().layers; ++l) {
    const ScoreLayer& scores = trace.scores(l);
    const bool sums_in_file = needs.column_sums && scores.column_mass != nullptr;
    if (sums_in_file) {
      std::vector<RowIndex> prefill;
      for (const RowIndex end : plan.ends) {
        if (end <= plan.prompt) prefill.push_back(end);
      }
      if (prefill !=
          std::vector<RowIndex>(trace.meta().passes.begin(), trace.meta().passes.end())) {
        lacks(fmt::format("layers.{}.scores.column_mass for these passes", l),
              fmt::format("its `passes` differ from the {} prefill passes of this run; use the "
                          "--chunk of the capture",
                          prefill.size()));
      }
      if (std::any_of(policy.rules.begin(), policy.rules.end(),
                      [](const Rule& r) { return r.schedule.every_chunk; }) &&
          prefill.size() > 1) {
        lacks(fmt::format("layers.{}.scores of all prompt rows", l),
              "column_mass holds the full cache's sums only");
      }
    }
    for (RowIndex row = 0; row < plan.tokens; ++row) {
      if (observed[static_cast<std::size_t>(row)] == 0) continue;
      if (sums_in_file && row < plan.prompt) continue;
      if (!std::binary_search(scores.rows.begin(), scores.rows.end(), row)) {
        lacks(fmt::format("row {} in layers.{}.scores.rows", row, l), "the capture left it out");
      }
    }
  }
}

RowIndex rows_per_block(const TraceMeta& meta, RowIndex wanted) {
  if (wanted > 0) return wanted;
  const std::int64_t row_bytes =
      padded(meta.tokens) * meta.query_heads * static_cast<std::int64_t>(sizeof(float));
  return std::clamp<RowIndex>(kBlockBytes / row_bytes, kFewestRows, kMostRows);
}

Run prepare(const Trace& trace, const std::vector<Policy>& policies, const EngineOptions& options) {
  Run run{trace, policies, options, {}, {}, {}, {}, {}};
  const Geometry geometry = geometry_of(trace, options);
  const auto tokens = static_cast<std::size_t>(geometry.tokens);
  run.needed.assign(tokens, 0);
  RowIndex changes_from = geometry.tokens;
  for (const Policy& policy : policies) {
    run.plans.push_back(make_passes(geometry.tokens, geometry.prompt, geometry.evict_at,
                                    geometry.chunk, policy.cuts));
    check_needs(policy, run.plans.back(), trace);
    changes_from =
        std::min(changes_from, mark_observed(policy, run.plans.back(), trace, run.needed));
  }
  if (options.fidelity) {
    run.fidelity = plan_fidelity(geometry.tokens, geometry.prompt, options.fidelity_rows);
    run.fidelity.output_error = wants_values(trace, options);
    run.fidelity.spans = trace.meta().spans;
    if (!trace.is_qkv()) {
      // Only captured rows can be measured; all layers must have them.
      std::vector<int> captured(tokens, 0);
      for (int l = 0; l < trace.meta().layers; ++l) {
        for (const std::int64_t row : trace.scores(l).rows)
          captured[static_cast<std::size_t>(row)]++;
      }
      for (std::size_t row = 0; row < tokens; ++row) {
        if (captured[row] != trace.meta().layers) run.fidelity.measured[row] = 0;
      }
    }
    for (std::size_t row = static_cast<std::size_t>(changes_from); row < tokens; ++row) {
      if (run.fidelity.measured[row] != 0) run.needed[row] = 1;
    }
  }
  run.memory.block_rows = rows_per_block(trace.meta(), options.block_rows);
  // Prefill passes end blocks, so that the last rows of a pass, which rules observe, are in memory.
  std::vector<RowIndex> cuts;
  for (const PassPlan& plan : run.plans) {
    for (const RowIndex end : plan.ends) {
      if (end <= geometry.prompt) cuts.push_back(end);
    }
  }
  cuts.push_back(geometry.tokens);
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  RowIndex begin = 0;
  for (const RowIndex cut : cuts) {
    // The short block comes first: the rows before the cut are the ones that rules look at.
    const RowIndex rest = (cut - begin) % run.memory.block_rows;
    if (rest > 0) run.block_ends.push_back(begin + rest);
    for (RowIndex end = begin + rest + run.memory.block_rows; end <= cut;
         end += run.memory.block_rows) {
      run.block_ends.push_back(end);
    }
    begin = cut;
  }
  return run;
}

bool selects(const Policy& policy) { return policy.selector || policy.prefill_reads; }

// Bytes of one sampled row of Ledger::reads, and how many rows fit.
struct ReadsSample {
  std::int64_t row_bytes = 0, rows = 0;
};
ReadsSample sample_of_reads(const TraceMeta& meta, const Policy& policy,
                            const EngineOptions& options) {
  if (!selects(policy)) return {};
  const std::int64_t heads = policy.per_query_head ? meta.query_heads : meta.kv_heads;
  const std::int64_t row_bytes = meta.layers * heads * ((meta.tokens + 7) / 8);
  return {row_bytes, std::min({kMostReadRows, meta.tokens,
                               std::max<std::int64_t>(0, options.keep_reads) / row_bytes})};
}

// Half of the rows in each phase; what one of them lacks, the other has.
std::vector<RowIndex> rows_of_sample(const PassPlan& plan, RowIndex rows) {
  const RowIndex decode =
      std::min(plan.tokens - plan.prompt, std::max(rows / 2, rows - plan.prompt));
  std::vector<RowIndex> out = spread_rows(0, plan.prompt, rows - decode);
  const std::vector<RowIndex> later = spread_rows(plan.prompt, plan.tokens, decode);
  out.insert(out.end(), later.begin(), later.end());
  return out;
}

bool reads_lower(const Policy& policy) { return policy.reads_lower_layers; }

// Anonymous memory of one layer in flight, and of what stays until the end.
struct MemoryParts {
  std::int64_t lane = 0, fixed = 0;
};

MemoryParts memory_parts(const Trace& trace, const std::vector<Policy>& policies,
                         const EngineOptions& options, RowIndex block_rows) {
  const TraceMeta& m = trace.meta();
  const std::int64_t keys = padded(m.tokens);
  const bool values = wants_values(trace, options);
  MemoryParts parts;
  parts.fixed = (std::int64_t{48} << 20U) + m.tokens * 8 * static_cast<std::int64_t>(m.layers);
  if (trace.is_qkv()) {
    parts.lane +=
        keys * m.kv_heads * m.head_dim * 4 + std::int64_t{1024} * m.kv_heads * m.head_dim * 4;
    parts.lane += block_rows * m.query_heads * m.head_dim * 8;
    if (values)
      parts.lane +=
          m.tokens * m.kv_heads * m.v_head_dim * 4 + block_rows * m.query_heads * m.v_head_dim * 16;
  }
  parts.lane += m.query_heads * block_rows * (row_stride(m.tokens) * 4 + 64);
  for (const Policy& policy : policies) {
    const std::int64_t heads = policy.per_query_head ? m.query_heads : m.kv_heads;
    const Needs needs =
        LayerPolicy(policy, shape_of(trace, m.layers - 1, policy.per_query_head)).needs();
    parts.lane += heads * keys * (4 + 4) + (needs.column_sums ? m.query_heads * keys * 8 : 0);
    if (selects(policy)) parts.lane += m.query_heads * keys * 8;
    // What roles remember: vectors in fp32 (and their moments in double), and figures of rows.
    if (needs.q) parts.lane += m.query_heads * std::int64_t{m.head_dim} * (m.head_dim * 8 + 512);
    if (needs.k) parts.lane += keys * m.kv_heads * m.head_dim * 8;
    if (needs.v) parts.lane += keys * m.kv_heads * m.v_head_dim * 8;
    if (needs.observe == Observe::always) parts.lane += m.query_heads * keys * 64;
    parts.lane += policy.role_bytes;
    if (values && (policy.alters_vectors || policy.renumbers)) {
      // K and V as they are held, and once more while they are handed over.
      parts.lane += 2 * keys * m.kv_heads * (m.head_dim + m.v_head_dim) * 4;
    }
    parts.lane += keys * 64 + m.query_heads * block_rows * (8 + 64);  // scratch rows, decisions
    if (values) parts.lane += m.query_heads * block_rows * m.v_head_dim * 8;
    parts.fixed += std::int64_t{m.layers} * heads * m.tokens * (options.keep_scores ? 12 : 4);
    const ReadsSample reads = sample_of_reads(m, policy, options);
    parts.fixed += reads.rows * reads.row_bytes;
    if (reads_lower(policy)) parts.fixed += std::int64_t{m.layers} * heads * m.tokens * 32;
    parts.fixed += m.tokens * (8 * 5 + 8 * 4);  // pass ends, timeline, row mass
    if (options.fidelity) {
      const std::int64_t rows =
          options.fidelity_rows > 0 ? std::min(m.tokens, 2 * options.fidelity_rows) : m.tokens;
      const std::int64_t cells = std::int64_t{m.layers} * m.query_heads * rows;
      // Percentiles: values of each of two phases, doubled while a vector grows.
      parts.fixed +=
          std::min<std::int64_t>(cells, std::int64_t{1} << 25U) * 4 * 2 * (values ? 2 : 1);
      parts.lane += m.tokens * 8;
    }
  }
  // Metrics look at one layer of one run at a time.
  parts.fixed += m.tokens * 16 * m.query_heads;
  return parts;
}

class LayerWalk {
 public:
  LayerWalk(const Run& run, int layer, std::vector<Replay>& replays,
            std::vector<DecisionBoard>& boards)
      : run_(run), scores_(run.trace, layer, wants_values(run.trace, run.options)) {
    const TraceMeta& m = run.trace.meta();
    // In parallel, since what looks ahead walks the layer's attention here.
    lanes_.resize(run.policies.size());
    tbb::parallel_for(std::size_t{0}, run.policies.size(), [&](std::size_t p) {
      lanes_[p] = std::make_unique<Lane>(run.policies[p], run.plans[p], run.trace,
                                         shape_of(run.trace, layer, run.policies[p].per_query_head),
                                         run.fidelity, replays[p].ledger, boards[p]);
    });
    const auto rows =
        static_cast<std::size_t>(m.query_heads) * static_cast<std::size_t>(run.memory.block_rows);
    stride_ = static_cast<std::size_t>(row_stride(m.tokens));
    buffer_.resize(rows * stride_);
    block_.info.resize(rows);
    block_.capacity = run.memory.block_rows;
    block_.scores = &scores_;
    if (wants_values(run.trace, run.options)) {
      block_.full_output.resize(rows * static_cast<std::size_t>(m.v_head_dim));
      all_keys_.resize(static_cast<std::size_t>(m.tokens));
      for (std::size_t j = 0; j < all_keys_.size(); ++j) all_keys_[j] = static_cast<TokenIndex>(j);
    }
  }

  void step(RowIndex begin, RowIndex end) {
    block_.begin = begin;
    block_.end = end;
    const auto needed = run_.needed.begin();
    const auto first = std::find(needed + begin, needed + end, 1);
    block_.first = first - needed;
    block_.last = block_.first;
    for (RowIndex row = end; row > block_.first; --row) {
      if (needed[row - 1] != 0) {
        block_.last = row;
        break;
      }
    }
    block_.key_end = padded(end);
    if (block_.first < block_.last) {
      tbb::parallel_for(0, run_.trace.meta().kv_heads, [&](int kv_head) { compute(kv_head); });
    }
    tbb::parallel_for(std::size_t{0}, lanes_.size(),
                      [&](std::size_t p) { lanes_[p]->process(block_); });
  }

  std::vector<std::unique_ptr<Lane>>& lanes() { return lanes_; }

 private:
  void compute(int kv_head) {
    const TraceMeta& m = run_.trace.meta();
    const int group = m.query_heads / m.kv_heads;
    const auto rows = static_cast<std::size_t>(block_.last - block_.first);
    std::vector<float*> out;
    std::vector<RowTerms> info(static_cast<std::size_t>(group) * rows);
    for (int g = 0; g < group; ++g) {
      for (RowIndex row = block_.first; row < block_.last; ++row) {
        out.push_back(buffer_.data() + block_.at(kv_head * group + g, row) * stride_);
      }
    }
    scores_.compute(kv_head, {block_.first, block_.last, block_.key_end}, out, info);
    for (std::size_t i = 0; i < info.size(); ++i) {
      const int q = kv_head * group + static_cast<int>(i / rows);
      block_.info[block_.at(q, block_.first + static_cast<RowIndex>(i % rows))] = info[i];
    }
    if (block_.full_output.empty()) return;
    std::vector<const float*> terms;
    std::vector<double*> outputs;
    for (std::size_t i = 0; i < info.size(); ++i) {
      const RowIndex row = block_.first + static_cast<RowIndex>(i % rows);
      if (!run_.fidelity.measures(row)) continue;
      terms.push_back(info[i].terms);
      outputs.push_back(block_.full_output.data() +
                        block_.at(kv_head * group + static_cast<int>(i / rows), row) *
                            static_cast<std::size_t>(m.v_head_dim));
    }
    const RowIndex from = scores_.first_key(block_.first);
    kernels::weighted_values(terms.data(), static_cast<std::int64_t>(terms.size()),
                             all_keys_.data() + from, block_.last - from,
                             scores_.values() + kv_head * m.v_head_dim,
                             std::int64_t{m.kv_heads} * m.v_head_dim, m.v_head_dim, outputs.data());
  }

  const Run& run_;
  LayerScores scores_;
  RowBlock block_;
  std::size_t stride_ = 0;     // floats from one row of the buffer to the next
  std::vector<float> buffer_;  // [query_heads][block rows][stride]
  std::vector<TokenIndex> all_keys_;
  std::vector<std::unique_ptr<Lane>> lanes_;
};

Ledger empty_ledger(const Run& run, std::size_t p) {
  const TraceMeta& m = run.trace.meta();
  const Policy& policy = run.policies[p];
  Ledger ledger;
  ledger.plan = run.plans[p];
  ledger.layers = m.layers;
  ledger.model_layers = m.model_layers;
  ledger.heads = policy.per_query_head ? m.query_heads : m.kv_heads;
  ledger.query_heads = m.query_heads;
  ledger.sliding_window = m.sliding_window;
  ledger.representations = policy.representations;
  ledger.charge = {policy.charge.entry, policy.charge.once, nullptr};
  if (policy.charge.during) {
    for (RowIndex row = 0; row < m.tokens; ++row) ledger.state.push_back(policy.charge.during(row));
  }
  const std::size_t entries = ledger.offset(m.layers, 0);
  ledger.death.assign(entries, static_cast<std::uint32_t>(m.tokens));
  ledger.changes.resize(static_cast<std::size_t>(m.layers));
  if (selects(policy)) {
    ledger.selected.assign(static_cast<std::size_t>(m.tokens), 0);
    const ReadsSample sample = sample_of_reads(m, policy, run.options);
    ledger.read_rows = rows_of_sample(ledger.plan, sample.rows);
    ledger.reads.assign(static_cast<std::size_t>(sample.rows * sample.row_bytes), 0);
  }
  if (run.options.keep_scores) {
    ledger.score.assign(entries, std::numeric_limits<float>::quiet_NaN());
    ledger.rank.assign(entries, -1);
  }
  return ledger;
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
  g.evict_at = options.evict_at > 0 ? options.evict_at : g.prompt;
  g.chunk = options.chunk;
  g.kv_bytes = options.kv_bytes;
  g.seed = options.seed;
  if (std::any_of(m.sliding_window.begin(), m.sliding_window.end(),
                  [](std::int64_t w) { return w > 0; })) {
    g.sliding_window = m.sliding_window;
  }
  g.trace = &trace;
  (void)make_passes(g.tokens, g.prompt, g.evict_at, g.chunk);  // checks them
  return g;
}

void check_policy(const Trace& trace, const Policy& policy, const EngineOptions& options) {
  const Geometry g = geometry_of(trace, options);
  check_needs(policy, make_passes(g.tokens, g.prompt, g.evict_at, g.chunk, policy.cuts), trace);
}

MemoryPlan plan_memory(const Trace& trace, const std::vector<Policy>& policies,
                       const EngineOptions& options) {
  MemoryPlan plan;
  plan.block_rows = rows_per_block(trace.meta(), options.block_rows);
  const MemoryParts parts = memory_parts(trace, policies, options, plan.block_rows);
  // More layers in flight only help while there are threads without a policy to work on.
  const std::int64_t most =
      std::max<std::int64_t>(1, (std::int64_t{4} << 30U) / std::max<std::int64_t>(1, parts.lane));
  plan.layers_in_flight = static_cast<int>(std::clamp<std::int64_t>(
      std::min<std::int64_t>(threads_of(options), trace.meta().layers), 1, most));
  // Whoever reuses the decisions of lower layers needs them finished.
  if (std::any_of(policies.begin(), policies.end(), reads_lower)) plan.layers_in_flight = 1;
  // Each thread has a stack and an allocator cache.
  plan.bytes = parts.fixed + plan.layers_in_flight * parts.lane +
               std::int64_t{4} * (std::int64_t{1} << 20U) * threads_of(options);
  return plan;
}

std::vector<Replay> replay(const Trace& trace, const std::vector<Policy>& policies,
                           const EngineOptions& options) {
  Run run = prepare(trace, policies, options);
  run.memory = plan_memory(trace, policies, options);
  const int layers = trace.meta().layers;
  std::vector<Replay> replays(policies.size());
  std::vector<FidelityTotal> totals;
  std::vector<DecisionBoard> boards(policies.size(),
                                    DecisionBoard(static_cast<std::size_t>(layers)));
  for (std::size_t p = 0; p < policies.size(); ++p) {
    replays[p].ledger = empty_ledger(run, p);
    if (!trace.is_qkv()) replays[p].undecided = 0;
    totals.emplace_back(run.fidelity, layers, trace.meta().query_heads);
  }

  // Layers finish in any order, but are summed in order.
  std::mutex mutex;
  std::map<int, std::vector<LayerFidelity>> waiting;
  int next_to_add = 0;
  const auto finish_layer = [&](int layer, LayerWalk& walk) {
    const std::lock_guard lock(mutex);
    std::vector<LayerFidelity> measured;
    for (std::size_t p = 0; p < policies.size(); ++p) {
      Lane& lane = *walk.lanes()[p];
      if (replays[p].undecided) *replays[p].undecided += lane.undecided();
      for (std::size_t row = 0; row < lane.selected().size(); ++row)
        replays[p].ledger.selected[row] += lane.selected()[row];
      measured.push_back(std::move(lane.fidelity()));
    }
    if (!run.fidelity.on()) return;
    waiting.emplace(layer, std::move(measured));
    for (auto it = waiting.begin(); it != waiting.end() && it->first == next_to_add;
         it = waiting.erase(it), ++next_to_add) {
      for (std::size_t p = 0; p < policies.size(); ++p) totals[p].add(std::move(it->second[p]));
    }
  };

  double whole = 0;
  for (RowIndex begin = 0; const RowIndex end : run.block_ends) {
    whole += static_cast<double>(end - begin) * static_cast<double>(end);
    begin = end;
  }
  std::atomic<double> done{0};
  std::atomic<int> next_layer{0};
  std::atomic<bool> failed{false};
  const auto lane_of_layers = [&](int /*lane*/) {
    for (int layer = next_layer++; layer < layers && !failed; layer = next_layer++) {
      try {
        LayerWalk walk(run, layer, replays, boards);
        for (RowIndex begin = 0; const RowIndex end : run.block_ends) {
          if (options.cancelled && options.cancelled()) throw Interrupted();
          if (failed) return;
          walk.step(begin, end);
          const double cells = static_cast<double>(end - begin) * static_cast<double>(end);
          done = done + cells;
          if (options.progress) options.progress(done / (whole * layers));
          begin = end;
        }
        finish_layer(layer, walk);
      } catch (...) {
        failed = true;
        throw;
      }
    }
  };
  const tbb::global_control allow(tbb::global_control::max_allowed_parallelism,
                                  static_cast<std::size_t>(threads_of(options)));
  tbb::task_arena arena(threads_of(options));
  arena.execute([&] {
    tbb::parallel_for(0, run.memory.layers_in_flight, 1, lane_of_layers, tbb::simple_partitioner());
  });
  if (run.fidelity.on()) {
    for (std::size_t p = 0; p < policies.size(); ++p)
      replays[p].fidelity = totals[p].finish(replays[p].ledger);
  }
  return replays;
}

}  // namespace kvspan
